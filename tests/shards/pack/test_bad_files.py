"""Files that are not patches: listed or counted, and every file accounted for in the summary."""

import io
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.console import show_messages
from common.errors import DataError
from shards.codec import png
from shards.pack.__main__ import main
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.pack.resume import ShardRecord
from tests.helpers.packing import sidecar_rows
from tests.helpers.patches import write_patches

COUNTS = {"train": 12, "val": 4, "test": 5}
CLASSES = ("ADI", "LYM", "tumor é")
TOTAL = 3 * sum(COUNTS.values())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad") / "raw"
    write_patches(root, COUNTS, CLASSES, seed=3)
    return root


def sixteen_bit_rgb() -> bytes:
    """An RGB PNG of 16 bits per sample, all zeros, which PIL cannot write."""
    header = b"IHDR" + (32).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    chunks = (header, b"IDAT" + zlib.compress(bytes(32 * 193)), b"IEND")
    lengths = [(len(chunk) - 4).to_bytes(4, "big") for chunk in chunks]
    sums = [zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks]
    return png.SIGNATURE + b"".join(map(b"".join, zip(lengths, chunks, sums, strict=True)))


def damaged(kind: str) -> bytes:
    """A file that is not a patch."""
    image = Image.fromarray(np.full((32, 32, 3), 7, np.uint8))
    out = io.BytesIO()
    modes = {"grey": "L", "palette": "P", "RGBA": "RGBA", "CMYK": "CMYK"}
    modes |= {"16-bit grey": "I;16", "grey with alpha": "LA"}
    grey = image.convert("L") if kind == "16-bit grey" else image
    image = grey.convert(modes.get(kind, "RGB")).resize((64, 64) if kind == "64x64" else (32, 32))
    frames: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)]}
    extra = frames if kind == "animated" else {}
    image.save(out, "JPEG" if kind in ("a JPEG", "CMYK") else "PNG", **extra)
    data = out.getvalue()
    broken = {"empty": b"", "truncated": data[:-5], "CRC": data[:50] + b"!" + data[51:]}
    broken["16-bit RGB"] = sixteen_bit_rgb()
    return broken.get(kind, data)


KINDS = {
    "empty": "empty file",
    "truncated": "truncated",
    "CRC": "CRC mismatch",
    "grey": "8-bit grey, expected 8-bit RGB",
    "grey with alpha": "8-bit grey with alpha",
    "palette": "8-bit palette",
    "RGBA": "8-bit RGBA",
    "16-bit grey": "16-bit grey",
    "16-bit RGB": "16-bit RGB, expected 8-bit RGB",
    "64x64": "64x64 pixels, expected 32x32",
    "animated": "animated PNG",
    "a JPEG": "not a PNG but a JPEG",
    "CMYK": "not a PNG but a JPEG",  # PNG has no CMYK
}


@pytest.mark.parametrize("kind", KINDS)
def test_bad_patches_are_listed_or_counted(kind: str, source: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(source, root)
    (root / "train" / "ADI" / "bad\none.png").write_bytes(damaged(kind))
    (root / "test" / "LYM" / "bad two.PNG").write_bytes(damaged(kind))
    with pytest.raises(DataError, match="2 files cannot be used") as error:
        pack(root, out, PackOptions(workers=1, shard_size=10, skip_bad=1))
    assert rf"'train/ADI/bad\none.png': {KINDS[kind]}" in str(error.value)
    assert not (out / "dataset.json").exists()
    metadata = pack(root, out, PackOptions(workers=1, shard_size=10, skip_bad=2))
    assert sum(split.count for split in metadata.splits.values()) == TOTAL
    assert metadata.provenance["skipped"]["count"] == 2
    assert {p for p, _ in metadata.provenance["skipped"]["first"]} == {
        "train/ADI/bad\none.png",
        "test/LYM/bad two.PNG",
    }
    keys = {str(row["key"]) for row in sidecar_rows(out)}
    missing = {f"s{i:09d}" for i in range(TOTAL + 2)} - keys
    assert len(missing) == 2 and len(keys) == TOTAL  # one gap in train, one in test


def test_the_command_ends_with_what_it_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = Path(shutil.copytree(source, tmp_path / "raw")), tmp_path / "out"
    for i in range(3):
        (root / "val" / "ADI" / f"bad{i}.png").write_bytes(damaged("empty"))
    arguments = ["shards.pack", str(root), str(out), "--workers", "1", "--skip-bad", "2"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 1
    errors = capsys.readouterr().err
    assert "3 files cannot be used as patches" in errors and "--skip-bad 3" in errors
    assert all(f"'val/ADI/bad{i}.png': empty file" in errors for i in range(3))
    assert not (out / "dataset.json").exists()


def test_the_summary_accounts_for_every_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(source, tmp_path / "raw"))
    twins = sorted((root / "train" / "LYM").glob("*.png"))[:2]
    shutil.copyfile(twins[0], twins[1])
    for i in range(4):
        (root / "val" / "ADI" / f"bad{i}.png").write_bytes(damaged("empty"))
    (root / "val" / "ADI" / "bad\n4.png").write_bytes(damaged("64x64"))
    (root / "val" / "ADI" / "bad5.jpg").touch()
    show_messages()
    metadata = pack(root, tmp_path / "out", PackOptions(workers=1, skip_bad=6, shard_size=10))
    printed = capsys.readouterr().out
    assert f"{TOTAL + 6} read, {TOTAL} packed, 6 skipped, 1 repeated" in printed
    assert "skipped: 4 x empty file (val/ADI/bad" in printed and "png, ...)" in printed
    assert r"skipped: 1 x 64x64 pixels, expected 32x32 ('val/ADI/bad\n4.png')" in printed
    names = {str(path.relative_to(root)) for path in twins}
    ((later, earlier),) = metadata.provenance["repeated"]["first"]
    assert {later, earlier} == names and metadata.provenance["repeated"]["count"] == 1
    order = [row["path"] for row in sidecar_rows(tmp_path / "out") if row["path"] in names]
    assert order == [earlier, later]


def test_fingerprints_that_meet_by_chance_are_no_repetition(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equal = property(lambda record: np.zeros(record.count, "u8"))
    monkeypatch.setattr(ShardRecord, "fingerprint_array", equal)
    metadata = pack(source, tmp_path / "out", PackOptions(workers=1, shard_size=10))
    assert metadata.provenance["repeated"]["count"] == 0


def test_a_shard_without_any_usable_patch_is_an_error(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "raw")
    for path in (tmp_path / "raw" / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no usable patch is left for val-000000"):
        pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1, skip_bad=100))
    assert not list((tmp_path / "out").glob("val*"))


def test_fingerprints_tell_patches_apart_where_checksums_of_whole_pngs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CRC-32 of a PNG has 16 free bits, since each chunk ends in its own: of a thousand patches
    some share it, of a million all do, and each would be read again."""
    write_patches(tmp_path / "raw", {"train": 1000}, ("a",), seed=3)
    read: list[int] = []

    def count_reads(handle: int, size: int, offset: int) -> bytes:
        read.append(offset)
        return b""

    monkeypatch.setattr("shards.pack.metadata.os.pread", count_reads)
    metadata = pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    rows = sidecar_rows(tmp_path / "out")
    assert len({row["crc32"] for row in rows}) < len(rows) == 1000
    assert not read and metadata.provenance["repeated"]["count"] == 0


@pytest.mark.parametrize("name", ["a/x.bmp", "stray.png"])
def test_a_source_without_any_patch_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "raw" / "a").mkdir(parents=True)
    (tmp_path / "raw" / name).touch()
    with pytest.raises(DataError, match="raw: no usable patch is left"):
        pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1, skip_bad=3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [("r\udcff", "out"), ("raw", "o\udcff")])
def test_a_folder_whose_name_is_not_utf8_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    source, out = (tmp_path / name for name in names)
    write_patches(source, {"train": 2}, ("a",), seed=1)
    with pytest.raises(DataError, match=r"\\xff': the name is not UTF-8; rename it"):
        pack(source, out, PackOptions(workers=1))
    assert not out.exists()


def test_what_was_skipped_counts_in_no_split(tmp_path: Path) -> None:
    """A file that cannot be used is known when it is read, after the splits are drawn."""
    folder = tmp_path / "raw" / "a"
    folder.mkdir(parents=True)
    for number in range(12):
        write_patches(tmp_path / str(number), {"train": 4}, ("a",), seed=number)
        for i, path in enumerate(sorted((tmp_path / str(number)).rglob("*.png"))):
            path.rename(folder / f"s{number}__{i}.png")
    for i in range(6):
        (folder / f"bad{i}__x.png").write_bytes(damaged("64x64"))
    options = PackOptions(workers=1, skip_bad=6, val=0.3, test=0.3)
    metadata = pack(tmp_path / "raw", tmp_path / "out", options)
    achieved = metadata.provenance["splits"]["achieved"]
    assert (
        set(achieved) == {"train", "val", "test"} and metadata.provenance["skipped"]["count"] == 6
    )
    for split, counts in achieved.items():
        (file,) = (tmp_path / "out").glob(f"{split}-*.parquet")
        sources = pq.read_table(file)["source"].to_pylist()
        assert counts == {"a": {"patches": len(sources), "groups": len(set(sources))}}
        assert not any(source.startswith("bad") for source in sources)


def test_where_no_patch_is_left_skipping_is_not_advised(tmp_path: Path) -> None:
    (tmp_path / "raw" / "A").mkdir(parents=True)
    for name in ("one.png", "two.jpg"):
        (tmp_path / "raw" / "A" / name).write_bytes(damaged("empty"))
    with pytest.raises(DataError) as error:
        pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1))
    assert "no other is left" in str(error.value) and "--skip-bad" not in str(error.value)
