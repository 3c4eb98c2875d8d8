"""Builds one shard: reads the files of its patches, checks them, writes the tar and the sidecar."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deflate import crc32
from xxhash import xxh3_64_intdigest

from common.files import atomic_file, sync_folder
from shards.codec.png import MAX_PNG_BYTES, PngError, inflate, store, unfilter
from shards.codec.sidecar import parquet
from shards.codec.tar_writer import BLOCK, ending, kept_members, padded, stored_members
from shards.pack.plan import ShardPlan
from shards.pack.resume import shard_files, write_record
from shards.schema import CHANNELS, NO_LABEL, SIDECAR, key
from shards.sources.convert import Rule, convert
from shards.sources.patch import Patch, read_source
from shards.sources.tiles import staged

MAX_LISTED = 100  # bad patches a record lists; all are counted
_BATCH = 64  # sums of up to 257 bytes fit 16 bits
_SAID = ("source", "slide", "patient", "site", "x", "y", "mpp", "path")  # as the patch has them
_said = attrgetter(*_SAID)


@dataclass(frozen=True)
class Job:
    """What all shards of a data set share."""

    root: str
    out: str
    png: str
    classes: list[str]
    digest: str
    convert: Rule = "none"
    tiles: str | None = None  # file that `tiles.stage` wrote


@dataclass(frozen=True)
class Record:
    """A finished shard."""

    name: str
    split: str
    count: int
    size: int
    xxh3: str
    sidecar_size: int
    sidecar_xxh3: str
    class_counts: list[int]
    channel_sums: list[int]  # of the values 0-255, RGB
    bad: int
    bad_first: list[list[str]]  # path and reason, at most MAX_LISTED
    prints: str  # 16 hexadecimal digits a sample: the xxh3 of its PNG

    @property
    def sample_prints(self) -> npt.NDArray[np.uint64]:
        """(count,) `prints` as numbers. The CRC-32 of a PNG would not do: its chunks end in their
        own, which leaves 16 bits that depend on the pixels."""
        return np.frombuffer(bytes.fromhex(self.prints), np.uint64)


@dataclass(frozen=True)
class _Batch:
    """Patches that passed every check."""

    keys: list[int]
    patches: list[Patch]
    pngs: list[bytes]  # source bytes, where they are kept
    raws: list[bytes]  # filtered rows


class _Shard:
    """The state while one shard grows."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.labels: dict[str | None, int] = {label: i for i, label in enumerate(job.classes)}
        self.keys: list[int] = []
        self.patches: list[Patch] = []
        self.sizes: list[int] = []  # of the PNGs, as they are written
        self.crcs: list[int] = []
        self.prints: list[int] = []
        self.sums = np.zeros(CHANNELS, np.int64)
        self.bad: list[list[str]] = []
        self.bad_count = 0

    def refuse(self, path: str, reason: str) -> None:
        self.bad_count += 1
        if len(self.bad) < MAX_LISTED:
            self.bad.append([path, reason])

    def members(self, batch: _Batch) -> memoryview:
        """The bytes of a batch, the next ones of the tar."""
        pixels = unfilter(batch.raws)
        summed = np.add.reduce(pixels, axis=0, dtype=np.uint16)
        self.sums += summed.reshape(-1, CHANNELS).sum(axis=0, dtype=np.int64)
        self.keys += batch.keys
        self.patches += batch.patches
        keys, labels = np.array(batch.keys), self.labels_of(batch.patches)
        if self.job.png == "stored":
            stored = store(pixels)
            self._measure(stored)
            return stored_members(keys, stored, labels).reshape(-1).data
        self._measure(batch.pngs)
        return memoryview(kept_members(keys, batch.pngs, labels))

    def _measure(self, pngs: Iterable[Any]) -> None:
        for png in pngs:
            self.sizes.append(len(png))
            self.crcs.append(crc32(png))
            self.prints.append(xxh3_64_intdigest(png))

    def labels_of(self, patches: list[Patch]) -> npt.NDArray[np.int64] | None:
        """(n,) class indices; none when the data set is unlabelled."""
        if not self.labels:
            return None
        return np.array([self.labels[patch.label] for patch in patches])

    def table(self) -> pa.Table:
        """The sidecar: a row a sample."""
        labels = self.labels_of(self.patches)
        tail = 0 if labels is None else 2 * BLOCK
        strides = [BLOCK + padded(size) + tail for size in self.sizes]
        columns: dict[str, Any] = dict(
            zip(_SAID, zip(*map(_said, self.patches), strict=True), strict=True)
        )
        columns |= {
            "key": [key(i) for i in self.keys],
            "label": [NO_LABEL] * len(self.keys) if labels is None else labels,
            "offset": BLOCK + np.cumsum([0, *strides[:-1]]),
            "size": self.sizes,
            "crc32": self.crcs,
        }
        return pa.table(columns, schema=SIDECAR)


def build(job: Job, plan: ShardPlan) -> Record:
    """Build the shard of `plan` in `job.out`: tar, sidecar and record, each whole or absent.

    A patch that is not usable is left out and listed in the record, with a gap in the keys. A
    shard without any usable patch has no files; its record counts 0.

    Raises:
        DataError: a source file is missing, unreadable or changed since the scan, or the output
            cannot be written.
    """
    tar_path, sidecar_path = shard_files(Path(job.out), plan.name)
    shard = _Shard(job)
    with atomic_file(tar_path) as tar, _opened(job.tiles) as tiles:
        for start in range(0, len(plan.patches), _BATCH):
            batch = _read_batch(shard, plan, start, tiles)
            if batch.keys:
                tar.write(shard.members(batch))
        tar.write(ending(tar.size))
    count = len(shard.keys)
    if not count:
        tar_path.unlink()
        record = Record(
            plan.name, plan.split, 0, 0, "", 0, "", [], [], shard.bad_count, shard.bad, ""
        )
    else:
        with atomic_file(sidecar_path) as sidecar:
            table = shard.table()
            sidecar.write(parquet(table))
        record = Record(
            plan.name, plan.split, count, tar.size, tar.xxh3, sidecar.size, sidecar.xxh3,
            np.bincount(table["label"].to_numpy(), minlength=len(job.classes)).tolist()
            if job.classes else [],
            shard.sums.tolist(), shard.bad_count, shard.bad,
            np.array(shard.prints, np.uint64).tobytes().hex(),
        )  # fmt: skip
    sync_folder(Path(job.out))
    write_record(Path(job.out), job.digest, asdict(record))
    return record


@contextmanager
def _opened(path: str | None) -> Iterator[int | None]:
    """A handle of the file of tiles, if there is one."""
    if path is None:
        yield None
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _read_batch(shard: _Shard, plan: ShardPlan, start: int, tiles: int | None) -> _Batch:
    batch = _Batch([], [], [], [])
    for i, patch in enumerate(plan.patches[start : start + _BATCH], start):
        number = plan.first_key + i
        try:
            if tiles is not None:
                patch, data, raw = patch, b"", staged(tiles, number)
            elif shard.job.convert == "none":
                data, raw = _plain(shard.job, patch)
            else:
                patch, data, raw = _converted(shard.job, patch)
        except PngError as error:
            shard.refuse(patch.path, str(error))
            continue
        batch.keys.append(number)
        batch.patches.append(patch)
        batch.pngs.append(data)
        batch.raws.append(raw)
    return batch


def _plain(job: Job, patch: Patch) -> tuple[bytes, bytes]:
    """The file as it is, and its rows."""
    data = read_source(job.root, patch)
    if job.png == "keep" and len(data) > MAX_PNG_BYTES:
        raise PngError(f"{len(data)} bytes, at most {MAX_PNG_BYTES} are kept: use stored")
    return data, inflate(data)


def _converted(job: Job, patch: Patch) -> tuple[Patch, bytes, bytes]:
    """The patch where it now lies, no bytes to keep, and its rows."""
    done = convert(read_source(job.root, patch), job.convert)
    moved = patch._replace(
        y=None if patch.y is None else patch.y + done.y,
        x=None if patch.x is None else patch.x + done.x,
        mpp=None if patch.mpp is None else patch.mpp * done.scale,
    )
    return moved, b"", done.raw
