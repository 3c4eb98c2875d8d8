"""Verification finds every kind of damage and names the place; sound sets pass."""

import io
import random
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash

from common.errors import DataError
from shards.codec import png
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import dumps_metadata, encode_sidecar, load_metadata
from shards.verify.__main__ import main
from shards.verify.check import Report, verify
from tests.helpers.patches import write_patches

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of train, one of val and test each: stored/ and keep/."""
    folder = tmp_path_factory.mktemp("verify")
    write_patches(folder / "raw", {"train": 10, "val": 5, "test": 5}, ("a", "b"), seed=7)
    for mode in ("stored", "keep"):
        pack(folder / "raw", folder / mode, PackOptions(png=mode, shard_size=10, workers=1))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def root(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed / "stored", tmp_path / "out"))


def places(report: Report) -> list[tuple[str, int | None]]:
    assert report.problem_count >= len(report.problems)
    return [(problem.file, problem.offset) for problem in report.problems]


def trust(root: Path) -> None:
    """Write the real sizes and hashes of the files into dataset.json, as an attacker would."""
    metadata = load_metadata(root)
    splits = {}
    for name, split in metadata.splits.items():
        shards = []
        for shard in split.shards:
            tar = (root / f"{shard.name}.tar").read_bytes()
            sidecar = (root / f"{shard.name}.parquet").read_bytes()
            shards.append(
                replace(
                    shard,
                    size=len(tar),
                    xxh3=xxhash.xxh3_64_hexdigest(tar),
                    sidecar_size=len(sidecar),
                    sidecar_xxh3=xxhash.xxh3_64_hexdigest(sidecar),
                )
            )
        splits[name] = replace(split, shards=shards)
    (root / "dataset.json").write_bytes(dumps_metadata(replace(metadata, splits=splits)))


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_a_sound_set_passes(mode: str, packed: Path) -> None:
    report = verify(packed / mode)
    assert (report.problems, report.problem_count, report.warnings) == ([], 0, [])


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_every_flip_anywhere_is_detected(mode: str, packed: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(packed / mode, tmp_path / "out"))
    rng = random.Random(0)
    files = sorted([*root.glob("*.tar"), *root.glob("*.parquet")])
    for _ in range(24):
        path = rng.choice(files)
        place = rng.randrange(path.stat().st_size), rng.randrange(8)
        flip(path, *place)
        assert path.name in dict(places(verify(root)))
        flip(path, *place)
    assert verify(root).problem_count == 0


@pytest.mark.parametrize("mode", ["stored", "keep"])
def test_a_flip_in_a_sample_is_located_although_dataset_json_hides_it(
    mode: str, packed: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(packed / mode, tmp_path / "out"))
    rng = random.Random(1)
    rows = pq.read_table(root / "train-000001.parquet").to_pylist()
    tar = root / "train-000001.tar"
    for target in ["header", "body", "class"] * 6:
        row = rng.choice(rows)
        start, end = row["offset"], row["offset"] + row["size"]
        end += -end % 512
        place = {
            "header": start - 512 + rng.randrange(148),
            "body": start + rng.randrange(row["size"]),
            "class": end + rng.choice([0, 150, 512]),
        }[target]
        flip(tar, place)
        trust(root)
        problems = dict(places(verify(root)))
        allowed = {start - 512, end}
        assert problems["train-000001.tar"] in allowed, (target, problems)
        flip(tar, place)


@pytest.mark.parametrize("cut", [1, 9216, 9217, 10_240, 10_241, 30_000, 50_000])
def test_a_cut_shard_names_the_place_and_the_loss(cut: int, root: Path) -> None:
    tar = root / "train-000000.tar"
    size = tar.stat().st_size - cut
    with open(tar, "r+b") as file:
        file.truncate(size)
    report = verify(root)
    assert ("train-000000.tar", size) in places(report)
    if cut <= 9216:
        return  # two of the closing blocks are left: only size and hash can tell
    trust(root)
    problems = [problem for problem in verify(root).problems if problem.offset is not None]
    assert [problem.file for problem in problems] == ["train-000000.tar"]
    lost = 10 - min(10, size // 5120)
    assert f"{lost} of 10 samples lost" in problems[0].what


def swap(root: Path, one: str, two: str) -> None:
    for suffix in (".tar", ".parquet"):
        first, second = root / (one + suffix), root / (two + suffix)
        held = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(held)


def test_shards_swapped_between_splits(root: Path) -> None:
    swap(root, "train-000000", "test-000000")
    assert {"train-000000.tar", "test-000000.tar"} <= set(dict(places(verify(root))))
    trust(root)
    what = {problem.file: problem.what for problem in verify(root).problems}
    assert "those of its split are 0 to 19" in what["train-000000.tar"]
    assert "those of its split are 30 to 39" in what["test-000000.tar"]


def test_one_shard_twice(root: Path) -> None:
    for suffix in (".tar", ".parquet"):
        shutil.copyfile(root / f"train-000000{suffix}", root / f"train-000001{suffix}")
    trust(root)
    report = verify(root)
    assert report.problem_count == 10
    assert "is also in train-000000" in report.problems[0].what


def test_the_table_counts_more_problems_than_are_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in load_metadata(root).splits["train"].shards:
        path = root / f"{shard.name}.parquet"
        table = pq.read_table(path)
        sizes = table["size"].to_numpy() + 1
        crcs = table["crc32"].to_numpy() ^ 1
        table = table.set_column(3, table.schema.field(3), [sizes])
        path.write_bytes(encode_sidecar(table.set_column(4, table.schema.field(4), [crcs])))
    trust(root)
    monkeypatch.setattr("sys.argv", ["verify", str(root)])
    assert main() == 1
    printed = capsys.readouterr().out.splitlines()
    (row,) = [line for line in printed if line.startswith("train")]
    assert row.split()[-1] == "40"
    assert printed[-1].endswith("40 problems")


def add_member(root: Path, name: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> None:
    """Put one member before all others of val-000000."""
    path = root / "val-000000.tar"
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "train-000000.tar"
    header = info.tobuf(tarfile.GNU_FORMAT)
    body = b"abc".ljust(512, b"\0") if size == 3 else b""
    path.write_bytes(header + body + path.read_bytes())
    trust(root)


@pytest.mark.parametrize(
    ("name", "kind", "size", "reason"),
    [
        ("s000000999.pyd", tarfile.REGTYPE, 3, "s000000999.pyd' is refused"),
        ("s000000999.pickle", tarfile.REGTYPE, 3, "is refused"),
        ("../../etc/x.png", tarfile.REGTYPE, 3, "expected s000000000.png"),
        ("s000000999.png", tarfile.SYMTYPE, 0, "of type b'2', expected a regular file"),
        ("s000000999.png", tarfile.CHRTYPE, 0, "of type b'3', expected a regular file"),
        ("s000000999.png", tarfile.REGTYPE, 8 << 30, "has 8589934592 bytes, at most 65536"),
        ("s000000999.cls", tarfile.REGTYPE, 3, "expected s000000000.png"),
        ("s000000999.png", tarfile.REGTYPE, 3, "is followed by"),
    ],
)
def test_members_that_are_none_of_ours(
    name: str, kind: bytes, size: int, reason: str, root: Path
) -> None:
    add_member(root, name, kind, size)
    (problem,) = [p for p in verify(root).problems if p.offset is not None]
    assert (problem.file, problem.offset) == ("val-000000.tar", 0)
    assert reason in problem.what and "10 of 10 samples lost" in problem.what


def remove(name: str) -> Change:
    return lambda root: (root / name).unlink()


def rewrite_rows(root: Path) -> None:
    path = root / "val-000000.parquet"
    table = pq.read_table(path)
    order = [1, 0, *range(2, len(table))]
    pq.write_table(table.take(order), path)
    trust(root)


def drop_column(root: Path) -> None:
    path = root / "val-000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["mpp"]), path)
    trust(root)


def two_tars_in_one(root: Path) -> None:
    path = root / "val-000000.tar"
    path.write_bytes(path.read_bytes() * 2)
    trust(root)


def other_counts(root: Path) -> None:
    metadata = load_metadata(root)
    val = replace(metadata.splits["val"], class_counts=[4, 6])
    changed = replace(metadata, splits=metadata.splits | {"val": val}, channel_mean=[0.5, 0.5, 0.5])
    (root / "dataset.json").write_bytes(dumps_metadata(changed))


def not_the_layout(root: Path) -> None:
    """A valid PNG with the right CRC in the sidecar, but of another layout than stored."""
    path = root / "val-000000.tar"
    data = bytearray(path.read_bytes())
    old = bytes(data[512:3684])
    raw = png.inflate(old)
    new = bytearray(old)
    new[41:43] = b"\x78\x9c"
    crc = zlib.crc32(new[37:3156])
    new[3156:3160] = crc.to_bytes(4, "big")
    assert png.inflate(bytes(new)) == raw
    data[512:3684] = new
    path.write_bytes(data)
    trust(root)


DAMAGE: dict[str, tuple[Change, str, int | None, str]] = {
    "no tar": (remove("test-000000.tar"), "test-000000.tar", None, "missing"),
    "no sidecar": (remove("test-000000.parquet"), "test-000000.parquet", None, "missing"),
    "a stale shard": (
        lambda root: (root / "train-000002.tar").touch() or None,
        "train-000002.tar",
        None,
        "not part of the data set",
    ),
    "rows in another order": (rewrite_rows, "val-000000.tar", 0, "its sidecar row"),
    "a column less": (drop_column, "val-000000.parquet", None, "columns are not those"),
    "concatenated": (two_tars_in_one, "val-000000.tar", 51200, "does not end here"),
    "counts": (other_counts, "dataset.json", None, "val counts [4, 6], not [5, 5]"),
    "layout": (not_the_layout, "val-000000.tar", 0, "not in the stored layout"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, root: Path) -> None:
    change, file, offset, reason = DAMAGE[name]
    change(root)
    problems = verify(root).problems
    assert any((p.file, p.offset) == (file, offset) and reason in p.what for p in problems), (
        problems
    )


def test_groups_that_cross_splits_are_a_warning(tmp_path: Path) -> None:
    write_patches(tmp_path / "raw", {"train": 4, "val": 4}, ("a", "b"), seed=1)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(workers=1, group_regex=r"(\d)__"))
    report = verify(tmp_path / "out")
    assert report.problem_count == 0
    assert report.warnings[0].startswith("2 of the source groups are in more than one split (0, 1)")


@pytest.mark.parametrize(("damage", "status"), [(False, 0), (True, 1)])
def test_exit_status(
    damage: bool,
    status: int,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage:
        flip(root / "val-000000.tar", 600)
    monkeypatch.setattr("sys.argv", ["verify", str(root)])
    assert main() == status
    assert "val-000000.tar at byte 0: 's0000000" in capsys.readouterr().err or not damage


def test_a_folder_without_metadata_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="not a packed data set"):
        verify(tmp_path)
    monkeypatch.setattr("sys.argv", ["verify", str(tmp_path)])
    assert main() == 1 and "not a packed data set" in capsys.readouterr().err


def test_the_writer_closes_like_tarfile(packed: Path) -> None:
    """An archive of the same members by tarfile has the same size: readers find the end."""
    for path in packed.glob("*/*.tar"):
        copy = io.BytesIO()
        with tarfile.open(path) as tar, tarfile.open(fileobj=copy, mode="w") as out:
            for member in tar:
                out.addfile(member, tar.extractfile(member))
        assert len(copy.getvalue()) == path.stat().st_size
