"""Hostile tars and names: refused by name and place, in little memory, and never run."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from common.errors import DataError
from shards.foreign.index import index_tars
from shards.foreign.provenance import IndexOptions
from tests.helpers.tars import (
    END,
    image_of,
    members,
    open_tar,
    raw_header,
    samples,
    scan,
    write_tar,
)

FEW = samples(4)
GOOD = image_of("k")


def pax(records: bytes, size: int | None = None) -> bytes:
    header = raw_header("x", len(records) if size is None else size, tarfile.XHDTYPE)
    return header + records.ljust(-(-len(records) // 512) * 512, b"\0")


REFUSED: dict[str, tuple[bytes, str]] = {
    "pyd": (raw_header("k.pyd", 3), "'k.pyd' is refused"),
    "pickle": (raw_header("k.pickle", 3), "'k.pickle' is refused"),
    "pyc": (raw_header("k.pyc", 3), "is refused"),
    "pth": (raw_header("k.pth", 3), "is refused"),
    "npz": (raw_header("k.npz", 8 << 30), "is refused"),
    "gz": (raw_header("k.png.gz", 3), "the first dot of a name ends the key"),
    "no suffix": (raw_header("README", 3), "is refused"),
    "hidden": (raw_header(".k.png", 3), "is refused"),
    "outside": (raw_header("../k.png", 0), "not a key inside the tar"),
    "absolute": (raw_header("/etc/k.png", 0), "not a key inside the tar"),
    "symbolic link": (raw_header("k.png", 0, tarfile.SYMTYPE, "/etc/passwd"), "of type b'2'"),
    "hard link": (raw_header("k.png", 0, tarfile.LNKTYPE, "j.png"), "of type b'1'"),
    "device": (raw_header("k.png", 0, tarfile.CHRTYPE), "of type b'3'"),
    "fifo": (raw_header("k.png", 0, tarfile.FIFOTYPE), "of type b'6'"),
    "sparse": (raw_header("k.png", 512, tarfile.GNUTYPE_SPARSE), "of type b'S'"),
    "8 GB image": (raw_header("k.png", 8 << 30), "has 8589934592 bytes, at most 65536"),
    "huge json": (raw_header("k.json", 1 << 20), "has 1048576 bytes, at most 65536"),
    "8 GB pax header": (pax(b"", 8 << 30), "an extended header of 8589934592 bytes"),
    "8 GB long name": (raw_header("x", 8 << 30, b"L"), "an extended header of"),
    "pax size": (pax(b"13 size=9999\n"), "sets 'size' is refused"),
    "pax sparse": (pax(b"22 GNU.sparse.major=1\n"), "sets 'GNU.sparse.major' is refused"),
    "pax damaged": (pax(b"99 path=x\n"), "a damaged pax header"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "a gzip file, expected a plain tar"),
    "zip": (b"PK\x03\x04" + bytes(600), "a zip file"),
    "no tar": (b"<html>" + bytes(600), "no valid member header"),
    "empty file": (b"", "no valid member header"),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_members_that_are_refused(name: str, first: bool, tmp_path: Path) -> None:
    attack, reason = REFUSED[name]
    good = open_tar(list(members(FEW)), tmp_path)
    content = attack + good + END if first and attack else (b"" if first else good + attack)
    if not first and name in ("gzip", "zip", "empty file"):
        reason = "no valid member header"
    broken = scan(tmp_path / "t.tar", content).broken
    assert broken is not None and reason in broken.reason, broken
    assert broken.offset == (0 if first else len(good))
    assert f"{0 if first else 4} samples begin before it" in broken.reason
    with pytest.raises(DataError, match=rf"t\.tar at byte {broken.offset}: "):
        index_tars(
            str(tmp_path / "t.tar"), tmp_path / "out", IndexOptions(split="train", skip_bad=9)
        )
    assert not (tmp_path / "out").exists()


def write_bombs(folder: Path) -> None:
    """Write tars that would fill the memory of a reader that believes them."""
    wide = bytearray(GOOD)
    wide[16:24] = (60_000).to_bytes(4, "big") * 2
    jpeg = bytearray(image_of("k", "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = (65_500).to_bytes(2, "big") * 2
    npy = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1<<40,)}\n"
    bodies = {
        "png": bytes(wide),
        "jpg": bytes(jpeg),
        "npy": npy,
        "gz": b"\x1f\x8b" + bytes(100_000),
    }
    for suffix, body in bodies.items():
        write_tar(folder / f"{suffix}.tar", [(f"k.{suffix}", body)])
    for name in ("8 GB image", "8 GB pax header", "8 GB long name", "npz", "sparse"):
        (folder / f"{name}.tar").write_bytes(REFUSED[name][0] + END)


def test_bombs_are_refused_without_their_memory(tmp_path: Path) -> None:
    write_bombs(tmp_path)
    write_tar(tmp_path / "warm", members(FEW))
    code = """
import resource, sys
from pathlib import Path
from shards.foreign.scan import ScanOptions, scan_tar
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan_tar(Path(sys.argv[1]) / "warm", "warm", ScanOptions())
before = peak()
for path in sorted(Path(sys.argv[1]).glob("*.tar")):
    result = scan_tar(path, path.name, ScanOptions())
    assert result.broken or result.bad_count == 1, path
print(peak() - before)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) < 20 << 10  # KiB


@pytest.mark.parametrize(
    "name", ["pipe:touch hit", "a.tar::b.tar", "pipe:touch hit |", "$(touch hit)"]
)
def test_no_name_reaches_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WDS_REWRITE", "a.tar=pipe:touch hit")
    with pytest.raises(DataError, match="does not exist"):
        index_tars(name, tmp_path / "out")
    assert not (tmp_path / "hit").exists()
    (tmp_path / name).mkdir()
    write_tar(tmp_path / name / "train.tar", members(FEW))
    assert index_tars(name, tmp_path / "out").splits["train"].count == 4
