"""Damage to our own shards, even where dataset.json agrees with it: located, or nothing is lost."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from common.errors import DataError
from pipeline.index import open_dataset
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import (
    SIDECAR,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    dumps_metadata,
    load_metadata,
)
from shards.verify.shard import Findings, check_shard
from tests.helpers.patches import write_patches

SAMPLES = 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One shard of four samples."""
    write_patches(tmp_path / "raw", {"train": SAMPLES // 2}, ("a", "b"), seed=7)
    pack(tmp_path / "raw", tmp_path / "out", PackOptions(png="keep", workers=1))
    return tmp_path / "out"


def trusted(root: Path) -> tuple[DatasetMetadata, Shard]:
    """Metadata that vouches for the files as they are, as one who altered both would write it."""
    metadata = load_metadata(root)
    (shard,) = metadata.splits["train"].shards
    tar, sidecar = shard.tar(root).read_bytes(), shard.sidecar(root).read_bytes()
    shard = replace(
        shard,
        size=len(tar),
        xxh3=xxhash.xxh3_64_hexdigest(tar),
        sidecar_size=len(sidecar),
        sidecar_xxh3=xxhash.xxh3_64_hexdigest(sidecar),
    )
    splits = {"train": replace(metadata.splits["train"], shards=[shard])}
    return replace(metadata, splits=splits), shard


def findings_of(root: Path, metadata: DatasetMetadata, shard: Shard) -> Findings:
    findings = Findings()
    check_shard(root, metadata, "train", shard, findings)
    return findings


def test_a_cut_at_every_128_bytes_is_named(root: Path) -> None:
    tar, clean = root / "train-000000.tar", load_metadata(root)
    whole = tar.read_bytes()
    rows = pq.read_table(root / "train-000000.parquet").to_pylist()
    last = rows[-1]["offset"] + -(-rows[-1]["size"] // 512) * 512 + 1024  # its class too
    for cut in range(0, len(whole), 128):
        tar.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"train-000000\.tar has {cut} bytes"):
            open_dataset(root)
        problems = findings_of(root, clean, clean.splits["train"].shards[0]).problems
        assert ("train-000000.tar", cut) in [(p.file, p.offset) for p in problems]
        hidden = findings_of(root, *trusted(root))
        if cut >= last + 1024:
            assert not hidden.problems and len(hidden.keys["train-000000"]) == SAMPLES
            continue
        (problem,) = hidden.problems
        assert problem.offset is not None and problem.offset <= cut
        before = sum(row["offset"] - 512 <= problem.offset for row in rows) - (cut < last)
        assert f"{SAMPLES - before} of {SAMPLES} samples lost" in problem.what, (cut, problem)


def test_a_flip_in_any_byte_of_a_header_is_found(root: Path) -> None:
    tar, clean = root / "train-000000.tar", load_metadata(root)
    whole = tar.read_bytes()
    silent = []
    for place in range(512):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        tar.write_bytes(flipped)
        hidden = findings_of(root, *trusted(root))
        if hidden.problems:
            assert {p.offset for p in hidden.problems} == {0}
        else:
            silent.append(place)
            assert findings_of(root, clean, clean.splits["train"].shards[0]).problems
    assert set(silent) <= {148, 154, 155}  # space around the checksum: the number is the same


def claims(column: str, value: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rows = pq.read_table(path)
        values = [value, *rows[column].to_pylist()[1:]]
        place = SIDECAR.names.index(column)
        values = pa.array(values, SIDECAR.field(column).type)
        pq.write_table(rows.set_column(place, SIDECAR.field(column), values), path)

    return change


def a_billion_rows(path: Path) -> None:
    """Or 40 million: enough to tell."""
    pq.write_table(pa.table({"key": np.zeros(40 << 20, np.int8)}), path, compression="zstd")


@pytest.mark.parametrize(
    "change",
    [
        claims("size", (1 << 31) - 1),
        claims("size", -1),
        claims("size", 0),
        claims("offset", (1 << 63) - 1),
        claims("offset", -1),
        claims("label", 2),
        a_billion_rows,
    ],
)
def test_a_hostile_sidecar_is_refused_in_little_memory(
    change: Callable[[Path], None], root: Path
) -> None:
    change(root / "train-000000.parquet")
    (root / "dataset.json").write_bytes(dumps_metadata(trusted(root)[0]))
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"train-000000\.parquet"):
            open_dataset(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak + pool.max_memory() - before < 20 << 20


def test_metadata_of_before_has_the_same_bytes_and_hash() -> None:
    """Fields that came later are absent where they say nothing."""
    shard = Shard("train-000000", 1, 5120, "0" * 16, 9, "f" * 16)
    assert b"path" not in dumps_metadata(_metadata(shard, "stored"))


def _metadata(shard: Shard, png: str) -> DatasetMetadata:
    return DatasetMetadata(
        png, [], {"train": SplitMetadata(shard.count, [], [shard])}, [0.5] * 3, {}
    )


@pytest.mark.parametrize(
    ("png", "path"),
    [("stored", "x.tar"), ("foreign", "x"), ("foreign", "x\0.tar"), ("foreign", 7)],
)
def test_where_a_shard_lies_is_checked(png: str, path: object, tmp_path: Path) -> None:
    shard = Shard("train-000000", 1, 5120, "0" * 16, 9, "f" * 16, path)  # type: ignore[arg-type]
    (tmp_path / "dataset.json").write_bytes(dumps_metadata(_metadata(shard, png)))
    with pytest.raises(DataError, match="path"):
        load_metadata(tmp_path)
