"""Build one shard: read and check the files of its patches, write the tar and the sidecar."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deflate import crc32
from xxhash import xxh3_64_intdigest

from common.files import atomic_file, sync_folder
from shards.codec.png import MAX_PNG_BYTES, PngError, store, unfilter
from shards.codec.tar_writer import BLOCK, ending, kept_members, padded, stored_members
from shards.pack.plan import ShardPlan
from shards.pack.resume import ShardRecord, shard_files, write_record
from shards.schema import CHANNELS, MAX_LISTED, NO_LABEL, SIDECAR, encode_sidecar, key
from shards.sources.collect import AnySource
from shards.sources.source import Patch, ReadPatch

_BATCH = 64  # sums of up to 257 bytes fit 16 bits
_OF_PATCH = ("source", "slide", "patient", "site", "x", "y", "mpp", "path")  # sidecar columns
_of_patch = attrgetter(*_OF_PATCH)
_Row = tuple[int, Patch, bytes, bytes]  # key, patch, bytes of its PNG, filtered rows


@dataclass(frozen=True, kw_only=True)
class Job:
    """Options that all shards of a data set share."""

    source: AnySource
    out: Path
    png: str
    classes: list[str]
    digest: str  # of the plan


class _Shard:
    """State of a shard while it is built."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.labels: dict[str | None, int] = {label: i for i, label in enumerate(job.classes)}
        self.keys: list[int] = []
        self.patches: list[Patch] = []
        self.sizes: list[int] = []  # of the PNGs, as they are written
        self.crcs: list[int] = []
        self.fingerprints: list[int] = []
        self.sums = np.zeros(CHANNELS, np.int64)
        self.bad: list[tuple[str, str]] = []
        self.bad_count = 0

    def read(self, plan: ShardPlan, start: int, read_patch: ReadPatch) -> list[_Row]:
        """Read the batch of patches from `start` on; those that are not usable are left out."""
        batch: list[_Row] = []
        keep = self.job.png == "keep"
        for i, patch in enumerate(plan.patches[start : start + _BATCH], plan.first_key + start):
            try:
                moved, png, raw = read_patch(i, patch)
                if keep and len(png) > MAX_PNG_BYTES:
                    raise PngError(
                        f"{len(png)} bytes, at most {MAX_PNG_BYTES} are kept: use stored"
                    )
            except PngError as error:
                self.bad_count += 1
                if len(self.bad) < MAX_LISTED:
                    self.bad.append((patch.path, str(error)))
                continue
            batch.append((i, moved, png, raw))
        return batch

    def members(self, batch: list[_Row]) -> memoryview:
        """Add a batch to the shard, and return its bytes in the tar."""
        numbers, patches, pngs, raws = zip(*batch, strict=True)
        pixels = unfilter(raws)
        summed = np.add.reduce(pixels, axis=0, dtype=np.uint16)
        self.sums += summed.reshape(-1, CHANNELS).sum(axis=0, dtype=np.int64)
        self.keys += numbers
        self.patches += patches
        keys, labels = np.array(numbers), self.labels_of(patches)
        if self.job.png == "stored":
            stored = store(pixels)
            self._measure(stored)
            return stored_members(keys, stored, labels).reshape(-1).data
        self._measure(pngs)
        return memoryview(kept_members(keys, pngs, labels))

    def _measure(self, pngs: Iterable[Any]) -> None:
        for png in pngs:
            self.sizes.append(len(png))
            self.crcs.append(crc32(png))
            self.fingerprints.append(xxh3_64_intdigest(png))

    def labels_of(self, patches: Sequence[Patch]) -> npt.NDArray[np.int64] | None:
        """Return (n,) class indices; None when the data set is unlabelled."""
        if not self.labels:
            return None
        return np.array([self.labels[patch.label] for patch in patches])

    def table(self) -> pa.Table:
        """Return the sidecar: a row per sample."""
        labels = self.labels_of(self.patches)
        tail = 0 if labels is None else 2 * BLOCK
        strides = [BLOCK + padded(size) + tail for size in self.sizes]
        values = zip(*map(_of_patch, self.patches), strict=True)
        columns: dict[str, object] = dict(zip(_OF_PATCH, values, strict=True))
        columns |= {
            "key": [key(i) for i in self.keys],
            "label": [NO_LABEL] * len(self.keys) if labels is None else labels,
            "offset": BLOCK + np.cumsum([0, *strides[:-1]]),
            "size": self.sizes,
            "crc32": self.crcs,
        }
        return pa.table(columns, schema=SIDECAR)


def build(job: Job, plan: ShardPlan) -> ShardRecord:
    """Build the shard of `plan` in `job.out`: tar, sidecar and record, each whole or absent.

    A patch that is not usable is left out and listed in the record, with a gap in the keys. A
    shard without any usable patch has no files; its record counts 0.

    Raises:
        DataError: a source file is missing, unreadable or changed since it was listed, or the
            output cannot be written.
    """
    tar_path, sidecar_path = shard_files(job.out, plan.name)
    shard = _Shard(job)
    with atomic_file(tar_path) as tar, job.source.open() as read_patch:
        for start in range(0, len(plan.patches), _BATCH):
            batch = shard.read(plan, start, read_patch)
            if batch:
                tar.write(shard.members(batch))
        tar.write(ending(tar.size))
    record = ShardRecord(name=plan.name, split=plan.split, bad=shard.bad_count, bad_first=shard.bad)
    if shard.keys:
        table = shard.table()
        with atomic_file(sidecar_path) as sidecar:
            sidecar.write(encode_sidecar(table))
        class_counts: list[int] = []
        if job.classes:
            labels = table["label"].to_numpy()
            class_counts = np.bincount(labels, minlength=len(job.classes)).tolist()
        record = replace(
            record,
            count=len(shard.keys),
            size=tar.size,
            xxh3=tar.xxh3,
            sidecar_size=sidecar.size,
            sidecar_xxh3=sidecar.xxh3,
            class_counts=class_counts,
            channel_sums=shard.sums.tolist(),
            fingerprints=np.array(shard.fingerprints, np.uint64).tobytes().hex(),
        )
    else:
        tar_path.unlink()
    sync_folder(job.out)
    write_record(job.out, job.digest, record)
    return record
