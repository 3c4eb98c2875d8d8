"""Opens a data set, and says which sample stands at which position of training.

Positions count images from the start of training: position p is sample order(p mod n) of epoch
p // n. The order depends on (seed, epoch, block) only: not on ranks, workers or batch size.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from deflate import crc32
from numpy.typing import NDArray

from common.errors import DataError
from shards.codec.png import MAX_PNG_BYTES
from shards.schema import (
    FOREIGN,
    METADATA_NAME,
    SIDECAR,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    dataset_hash,
    load_metadata,
)

_INDEX = ["label", "offset", "size", "crc32"]  # columns that reading needs
_GROUPS = ["patient", "slide", "source"]  # the first that is known
BLOCKS_PER_WINDOW = 256  # of a streamed order: 16,384 samples, 50 MB of pixels
STREAM_BLOCK = 64  # consecutive samples that stay together when streaming


@dataclass(frozen=True)
class Split:
    """One split of a data set: its shards, and where each sample lies in them.

    What else is known of a sample stays in the sidecars until it is asked for: names and paths
    of many patches take more memory than the pixels that streaming keeps.
    """

    root: Path
    name: str
    metadata: SplitMetadata
    png: str
    index: pa.Table  # label, offset, size and crc32, a row a sample in shard order

    def __len__(self) -> int:
        return self.metadata.count

    @property
    def table(self) -> pa.Table:
        """A row a sample with every column, read and checked again at each use; not kept."""
        return self.columns(SIDECAR.names)

    def columns(self, names: list[str]) -> pa.Table:
        """The same with some columns."""
        found = [_read_sidecar(self.root, shard).select(names) for shard in self.metadata.shards]
        return pa.concat_tables([SIDECAR.empty_table().select(names), *found])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) class indices, -1 = none."""
        return self.index["label"].to_numpy().astype(np.int64)

    @cached_property
    def group_count(self) -> int:
        """How many groups there are."""
        found = int(pc.count_distinct(groups(self.columns(_GROUPS))).as_py())
        pa.default_memory_pool().release_unused()  # of the names
        return found

    def keys(self, indices: NDArray[np.int64]) -> list[str]:
        return self.columns(["key"])["key"].take(pa.array(indices)).to_pylist()


def groups(table: pa.Table) -> pa.ChunkedArray:
    """What is independent: the patient where known, else the slide, else the source image."""
    return pc.coalesce(*(table[name] for name in _GROUPS))


@dataclass(frozen=True)
class Dataset:
    root: Path
    metadata: DatasetMetadata
    splits: dict[str, Split]

    @property
    def hash(self) -> str:
        """Covers every shard: it names the data set in run folders."""
        return dataset_hash(self.metadata)

    def split(self, name: str) -> Split:
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
    pa.default_memory_pool().release_unused()  # of the names, many times what is kept
    return Dataset(root, metadata, splits)


def _open_splits(root: Path, metadata: DatasetMetadata) -> dict[str, Split]:
    splits, keys = {}, dict[str, pa.ChunkedArray]()
    for name, split in metadata.splits.items():
        found = [SIDECAR.empty_table().select(_INDEX)]
        for shard in split.shards:
            table = _open_shard(root, metadata, shard)
            found.append(table.select(_INDEX))
            keys[shard.name] = table["key"]
        index = pa.concat_tables(found).combine_chunks()  # its columns are then arrays, no copies
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
    """Every column of a shard's sidecar.

    Raises:
        DataError: it is missing, altered or not one of this format.
    """
    sidecar = shard.sidecar(root)
    try:
        blob = sidecar.read_bytes()
    except OSError as error:
        raise DataError(f"{sidecar} cannot be read: {error.strerror}") from None
    if xxhash.xxh3_64_hexdigest(blob) != shard.sidecar_xxh3:
        raise DataError(f"{sidecar} was altered: its hash is not the one in {METADATA_NAME}")
    try:
        with pq.ParquetFile(pa.BufferReader(blob)) as file:
            # a small file can claim any number of rows: they are not read to be counted
            known = file.metadata.num_rows == shard.count
            table = file.read() if known else SIDECAR.empty_table()
        table.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{sidecar} is not a sidecar of this format: {error}") from None
    if not table.schema.equals(SIDECAR) or table.num_rows != shard.count:
        raise DataError(f"{sidecar} does not hold {shard.count} rows of this format")
    return table


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


class Order:
    """The order of training over `count` samples, endless, epoch after epoch.

    A permutation of blocks of consecutive samples, then of the samples within a window of blocks.
    block = 1 is an exact uniform permutation (for splits in memory); larger blocks keep reads
    of a streamed split sequential.
    """

    def __init__(self, count: int, seed: int, block: int) -> None:
        if count < 1:
            raise DataError("the split is empty: there is nothing to train on")
        self.count, self.seed, self.block = count, seed, block
        blocks = -(-count // block)
        self.window = count if block == 1 else BLOCKS_PER_WINDOW * block
        self.blocks = blocks
        self._epoch, self._perm = -1, np.empty(0, np.int64)
        self._window_id, self._samples = (-1, -1), np.empty(0, np.int64)

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sample indices at positions start..stop of training."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.count)
            begin, samples = self._window_at(epoch, offset)
            part = samples[offset - begin : offset - begin + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def share(self, start: int, stop: int, rank: int, world: int) -> NDArray[np.int64]:
        """What `rank` takes of the global batch at positions start..stop, of equal shares.

        Every world-th sample; of a streamed order the samples of neighbouring blocks, in the order
        of the batch: each rank then reads its own part of the shards, and not all of them.
        """
        batch = self.take(start, stop)
        if self.block == 1 or world == 1:
            return batch[rank::world]
        each = len(batch) // world
        by_block = np.argsort(batch // self.block, kind="stable")
        return batch[np.sort(by_block[rank * each : (rank + 1) * each])]

    def _window_at(self, epoch: int, offset: int) -> tuple[int, NDArray[np.int64]]:
        """The window that holds `offset` of `epoch`: where it begins and its samples in order."""
        if epoch != self._epoch:
            self._epoch, self._perm = epoch, self._rng(0, epoch).permutation(self.blocks)
            self._sizes = np.full(self.blocks, self.block)
            self._sizes[self._perm == self.blocks - 1] = self.count - (self.blocks - 1) * self.block
            self._starts = np.concatenate([[0], self._sizes.cumsum()])
        if self.block == 1:
            return 0, self._perm
        block = int(np.searchsorted(self._starts, offset, side="right")) - 1
        window = block // BLOCKS_PER_WINDOW
        first = window * BLOCKS_PER_WINDOW
        if self._window_id != (epoch, window):
            chosen = self._perm[first : first + BLOCKS_PER_WINDOW]
            samples = (chosen[:, None] * self.block + np.arange(self.block)).ravel()
            samples = samples[samples < self.count]
            self._window_id = (epoch, window)
            self._samples = self._rng(1, epoch, window).permutation(samples)
        return int(self._starts[first]), self._samples

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *stream])))
