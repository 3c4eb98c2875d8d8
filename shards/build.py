"""Builds one shard: reads the files of its patches, checks them, writes the tar and the sidecar."""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.convert import Rule, convert
from shards.output import publish, shard_files, sync_folder, write_record
from shards.plan import ShardPlan
from shards.png import MAX_PNG_BYTES, PngError, inflate, store, unfilter
from shards.schema import CHANNELS, NO_LABEL, SIDECAR, key
from shards.sidecar import parquet
from shards.sources import Patch, read_source
from shards.tiles import staged
from shards.ustar import BLOCK, ending, kept_members, padded, stored_members

MAX_LISTED = 100  # bad patches a record lists; all are counted
_BATCH = 64  # sums of up to 257 bytes fit 16 bits


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
        self.rows: dict[str, list[Any]] = {name: [] for name in SIDECAR.names}
        self.sums = np.zeros(CHANNELS, np.int64)
        self.bad: list[list[str]] = []
        self.bad_count = 0

    def refuse(self, path: str, reason: str) -> None:
        self.bad_count += 1
        if len(self.bad) < MAX_LISTED:
            self.bad.append([path, reason])

    def members(self, batch: _Batch, offset: int) -> memoryview:
        """The bytes of a batch that starts at `offset` of the tar; its rows join the sidecar."""
        pixels = unfilter(batch.raws)
        summed = np.add.reduce(pixels, axis=0, dtype=np.uint16)
        self.sums += summed.reshape(-1, CHANNELS).sum(axis=0, dtype=np.int64)
        keys = np.array(batch.keys)
        labels = np.array([self.labels[p.label] for p in batch.patches]) if self.labels else None
        if self.job.png == "stored":
            stored = store(pixels)
            pngs = [png.tobytes() for png in stored]
            tar = stored_members(keys, stored, labels).reshape(-1).data
        else:
            pngs = batch.pngs
            tar = memoryview(kept_members(keys, pngs, labels))
        self._rows(batch, pngs, labels, offset)
        return tar

    def _rows(self, batch: _Batch, pngs: list[bytes], labels: Any, offset: int) -> None:
        sizes = [len(png) for png in pngs]
        tail = 0 if labels is None else 2 * BLOCK
        strides = [BLOCK + padded(size) + tail for size in sizes]
        starts = offset + BLOCK + np.cumsum([0, *strides[:-1]])
        none = [NO_LABEL] * len(pngs)
        columns = {
            "key": [key(i) for i in batch.keys],
            "label": none if labels is None else labels.tolist(),
            "offset": starts.tolist(),
            "size": sizes,
            "crc32": [zlib.crc32(png) for png in pngs],
        }
        for name in SIDECAR.names:
            column = columns.get(name)
            self.rows[name] += column or [getattr(patch, name) for patch in batch.patches]


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
    with publish(tar_path) as tar, _opened(job.tiles) as tiles:
        for start in range(0, len(plan.patches), _BATCH):
            batch = _read_batch(shard, plan, start, tiles)
            if batch.keys:
                tar.write(shard.members(batch, tar.size))
        tar.write(ending(tar.size))
    count = len(shard.rows["key"])
    if not count:
        tar_path.unlink()
        record = Record(plan.name, plan.split, 0, 0, "", 0, "", [], [], shard.bad_count, shard.bad)
    else:
        with publish(sidecar_path) as sidecar:
            sidecar.write(parquet(pa.table(shard.rows, schema=SIDECAR)))
        record = Record(
            plan.name, plan.split, count, tar.size, tar.xxh3, sidecar.size, sidecar.xxh3,
            np.bincount(shard.rows["label"], minlength=len(job.classes)).tolist()
            if job.classes else [],
            shard.sums.tolist(), shard.bad_count, shard.bad,
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
    moved = replace(
        patch,
        y=None if patch.y is None else patch.y + done.y,
        x=None if patch.x is None else patch.x + done.x,
        mpp=None if patch.mpp is None else patch.mpp * done.scale,
    )
    return moved, b"", done.raw
