"""Open a packed data set and check it, without reading a pixel."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from deflate import crc32
from numpy.typing import NDArray

from common.errors import DataError
from pipeline.normalisation import Normalisation, Normaliser
from shards.codec.png import MAX_PNG_BYTES
from shards.schema import (
    FOREIGN,
    METADATA_NAME,
    SIDECAR,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    dataset_hash,
    decode_sidecar,
    load_metadata,
)
from shards.sources.splits import GROUPS, unknown_sources, unknown_warning

_INDEX = ["label", "offset", "size", "crc32"]  # columns that reading needs


@dataclass(frozen=True)
class Split:
    """One split of a data set: its shards, and the place of each sample in them.

    Other columns are read from the sidecars on demand: names and paths of many patches take more
    memory than the pixels that streaming keeps.
    """

    root: Path
    name: str
    metadata: SplitMetadata
    png: str
    index: pa.Table  # label, offset, size and crc32, one row per sample in shard order
    normaliser: Normaliser | None = None  # of the patches that are read; None: as they are

    def __len__(self) -> int:
        return self.metadata.count

    @property
    def table(self) -> pa.Table:
        """Every column, one row per sample; read and checked again at each access."""
        return self.columns(SIDECAR.names)

    def columns(self, names: list[str]) -> pa.Table:
        """Read some columns, one row per sample; read and checked again at each call."""
        shards = [_read_sidecar(self.root, shard).select(names) for shard in self.metadata.shards]
        return pa.concat_tables([SIDECAR.empty_table().select(names), *shards])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) class indices, -1 = none."""
        return self.index["label"].to_numpy().astype(np.int64)

    @cached_property
    def group_count(self) -> int:
        """Number of groups: patients, slides or source images."""
        count = int(pc.count_distinct(groups(self.columns([*GROUPS]))).as_py())
        pa.default_memory_pool().release_unused()  # memory of the names
        return count

    def keys(self, indices: NDArray[np.int64]) -> list[str]:
        """Return the keys of some samples, in the order of `indices`."""
        return self.columns(["key"])["key"].take(pa.array(indices)).to_pylist()


def groups(table: pa.Table) -> pa.ChunkedArray:
    """Return the independent unit of each row: patient, else slide, else source image."""
    return pc.coalesce(*(table[name] for name in GROUPS))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that was opened and checked."""

    root: Path
    metadata: DatasetMetadata
    splits: dict[str, Split]
    normalisation: Normalisation | None = None  # of the patches that are read

    @property
    def unknown_sources(self) -> str:
        """Warning that the source of patches is unknown; empty if none is, or nothing is said."""
        return unknown_warning(*unknown_sources(self.metadata.provenance))

    @property
    def hash(self) -> str:
        """Hash over every shard; it names the data set in run folders."""
        return dataset_hash(self.metadata)

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            DataError: the data set has no such split.
        """
        if name not in self.splits:
            raise DataError(
                f"{self.root / METADATA_NAME} has no split {name!r}, only {sorted(self.splits)}"
            )
        return self.splits[name]


def open_dataset(root: Path) -> Dataset:
    """Open and check a data set: sizes, sidecar hashes, first headers; no pixel is read.

    Raises:
        DataError: a shard is missing, resized, renamed or swapped, or a sidecar altered.
    """
    metadata = load_metadata(root)
    splits = _open_splits(root, metadata)
    pa.default_memory_pool().release_unused()  # names take many times the index
    return Dataset(root, metadata, splits)


def _open_splits(root: Path, metadata: DatasetMetadata) -> dict[str, Split]:
    splits, keys = {}, dict[str, pa.ChunkedArray]()
    for name, split in metadata.splits.items():
        rows = [SIDECAR.empty_table().select(_INDEX)]
        for shard in split.shards:
            table = _open_shard(root, metadata, shard)
            rows.append(table.select(_INDEX))
            keys[shard.name] = table["key"]
        index = pa.concat_tables(rows).combine_chunks()  # columns become arrays without copies
        splits[name] = Split(root, name, split, metadata.png, index)
    _check_unique(root, keys)
    return splits


def _open_shard(root: Path, metadata: DatasetMetadata, shard: Shard) -> pa.Table:
    tar, sidecar = shard.tar(root), shard.sidecar(root)
    for path, size in ((tar, shard.size), (sidecar, shard.sidecar_size)):
        if not path.is_file():
            raise DataError(f"{path} is missing; {METADATA_NAME} lists it: copy or pack it again")
        if path.stat().st_size != size:
            raise DataError(
                f"{path} has {path.stat().st_size} bytes, {METADATA_NAME} says {size}: "
                "it was truncated or altered; copy or pack it again"
            )
    table = _read_sidecar(root, shard)
    _check_rows(tar, sidecar, table, len(metadata.classes))
    (_check_first_image if metadata.png == FOREIGN else _check_first_name)(tar, table)
    return table


def _read_sidecar(root: Path, shard: Shard) -> pa.Table:
    """Read every column of a shard's sidecar.

    Raises:
        DataError: the sidecar is missing, altered or of another format.
    """
    sidecar = shard.sidecar(root)
    try:
        blob = sidecar.read_bytes()
    except OSError as error:
        raise DataError(f"{sidecar} cannot be read: {error.strerror}") from None
    if xxhash.xxh3_64_hexdigest(blob) != shard.sidecar_xxh3:
        raise DataError(f"{sidecar} was altered: its hash is not the one in {METADATA_NAME}")
    try:
        return decode_sidecar(blob, shard.count)
    except ValueError as error:
        raise DataError(f"{sidecar} is not a sidecar of this format: {error}") from None


def _check_first_name(tar: Path, table: pa.Table) -> None:
    with open(tar, "rb") as file:
        name = file.read(100).split(b"\0")[0].decode("ascii", "replace")
    if name != f"{table['key'][0]}.png":
        raise DataError(
            f"{tar} begins with {name!r}, its sidecar with {table['key'][0]}: the shards of two "
            "splits or data sets were swapped; restore the files"
        )


def _check_first_image(tar: Path, table: pa.Table) -> None:
    first = table.slice(0, 1).to_pylist()[0]
    with open(tar, "rb") as file:
        file.seek(first["offset"])
        data = file.read(first["size"])
    if crc32(data) != first["crc32"]:
        raise DataError(
            f"{tar} does not hold {first['path']!r} at byte {first['offset']}: it was replaced "
            "since it was indexed; restore it, or index it again"
        )


def _check_rows(tar: Path, sidecar: Path, table: pa.Table, classes: int) -> None:
    offset, size = pc.min_max(table["offset"]).as_py(), pc.min_max(table["size"]).as_py()
    if size["min"] < 1 or size["max"] > MAX_PNG_BYTES:
        raise DataError(f"{sidecar} has images of {size} bytes, expected 1 to {MAX_PNG_BYTES}")
    end = pc.max(pc.add(table["offset"], pc.cast(table["size"], pa.int64()))).as_py()
    if offset["min"] < 0 or max(offset["max"], end) > tar.stat().st_size:
        raise DataError(f"{sidecar} points outside its tar")
    label = pc.min_max(table["label"]).as_py()
    if label["min"] < -1 or label["max"] >= classes:
        raise DataError(f"{sidecar} has label {label}, of {classes} classes")


def _check_unique(root: Path, keys: dict[str, pa.ChunkedArray]) -> None:
    chunks = [chunk for column in keys.values() for chunk in column.chunks]
    distinct = pc.count_distinct(pa.chunked_array(chunks, pa.string())).as_py()
    if distinct == sum(map(len, keys.values())):
        return
    owners: dict[str, str] = {}
    for shard, column in keys.items():
        for key in column.to_pylist():
            if (owner := owners.setdefault(key, shard)) != shard:
                raise DataError(
                    f"{root}: {owner} and {shard} both hold the sample {key}: one was copied from "
                    "the other; restore it, or pack again"
                )
    raise DataError(f"{root} holds a sample twice within one shard: pack it again")
