"""Positioned reads of patches from shards: no memory maps, every sample checked by its CRC once.

A truncated memory map kills Python with SIGBUS and counts as resident memory; `os.preadv` into a
buffer raises and does not.
"""

import os
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path

import numpy as np
from deflate import crc32
from numpy.typing import NDArray

from common.errors import DataError
from pipeline.index import Split
from shards.codec import images, png
from shards.schema import CHANNELS, FOREIGN, PATCH

MAX_OPEN_FILES = 64
RUN = 64  # samples a read, at most
MAX_STEP = 1 << 16  # bytes from one sample of a run to the next: what lies between is read too


class Files:
    """Read-only descriptors, the least recently used closed first."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._open: OrderedDict[int, int] = OrderedDict()

    def descriptor(self, i: int) -> int:
        if i in self._open:
            self._open.move_to_end(i)
            return self._open[i]
        if len(self._open) >= MAX_OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[i] = os.open(self.paths[i], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[i]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Reader:
    """Decoded patches of one split by sample index. Not for use by two threads at once.

    Every sample is checked by its CRC when it is first read. Neighbours in a shard are read
    together: a run of them is one system call.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.starts = np.concatenate([[0], np.cumsum([s.count for s in split.metadata.shards])])
        self.files = Files([shard.tar(split.root) for shard in split.metadata.shards])
        self.offsets = split.index["offset"].to_numpy()
        self.sizes = split.index["size"].to_numpy()
        self.crcs = split.index["crc32"].to_numpy()
        self.checked = np.zeros(len(split), np.bool_)
        self.buffer = np.empty(0, np.uint8)  # of the run being read: a new one costs page faults
        self.stored = split.png == "stored"
        self.decode = images.decode_trusted if split.png == FOREIGN else png.decode_trusted
        if self.stored and not (self.sizes == png.STORED_PNG_BYTES).all():
            raise DataError(f"{split.root}: a PNG of split {split.name} is not of the stored size")

    def read(
        self, indices: NDArray[np.int64], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """(n, 32, 32, 3) uint8 in the order of `indices`, in `out` where it is given.

        Raises:
            DataError: a sample's bytes are missing or altered; names shard, key and byte offset.
        """
        if out is None:
            out = np.empty((len(indices), PATCH, PATCH, CHANNELS), np.uint8)
        fill = self._fill_stored if self.stored else self._fill_decoded
        edges = self._edges(indices)
        for first, stop in pairwise(edges):
            run = indices[first:stop]
            data, places = self._fetch(run)
            self._check(run, data, places)
            fill(run, data, places, out[first:stop])
        return out

    def _edges(self, indices: NDArray[np.int64]) -> list[int]:
        """Where a run of samples that lie close together in one shard begins, and the end."""
        if not len(indices):
            return [0]
        offsets, shards = self.offsets[indices], self.starts.searchsorted(indices, side="right")
        follow = (indices[1:] - indices[:-1] == 1) & (shards[1:] == shards[:-1])
        steps = offsets[1:] - offsets[:-1]  # not np.diff, which costs what 20 samples do
        least = png.STORED_PNG_BYTES if self.stored else 1  # rows of a sidecar may lie anywhere
        follow &= (steps >= least) & (steps <= MAX_STEP)
        if self.stored:  # one stride, so that a run is one array
            follow &= steps == (steps[follow][0] if follow.any() else 0)
        rows = [0, *((~follow).nonzero()[0] + 1).tolist(), len(indices)]
        return [r for first, stop in pairwise(rows) for r in range(first, stop, RUN)] + rows[-1:]

    def _fetch(self, run: NDArray[np.int64]) -> tuple[memoryview, list[int]]:
        """The bytes of a run until the next is read, and where each sample begins in them."""
        offsets = self.offsets[run]
        shard = int(np.searchsorted(self.starts, run[0], side="right")) - 1
        places: list[int] = (offsets - offsets[0]).tolist()
        size = places[-1] + int(self.sizes[run[-1]])
        if size > len(self.buffer):
            self.buffer = np.empty(size, np.uint8)
        data = self.buffer[:size].data
        got = os.preadv(self.files.descriptor(shard), [data], int(offsets[0]))
        if got != len(data):
            ends = np.array(places) + self.sizes[run]
            row = int((ends > got).argmax())
            there = max(0, got - places[row])
            raise self._refusal(int(run[row]), f"{there} of {self.sizes[run[row]]} bytes")
        return data, places

    def _check(self, run: NDArray[np.int64], data: memoryview, places: list[int]) -> None:
        if self.checked[run].all():
            return
        rows = zip(places, self.sizes[run].tolist(), self.crcs[run].tolist(), strict=True)
        for row, (place, size, crc) in enumerate(rows):
            if crc32(data[place : place + size]) != crc:
                raise self._refusal(int(run[row]), "its checksum differs")
        self.checked[run] = True

    def _fill_stored(
        self, run: NDArray[np.int64], data: memoryview, places: list[int], out: NDArray[np.uint8]
    ) -> None:
        stride = places[1] if len(places) > 1 else png.STORED_PNG_BYTES
        shape = (len(run), png.STORED_PNG_BYTES)
        samples = np.ndarray(shape, np.uint8, data, strides=(stride, 1))
        np.ndarray((len(run), PATCH, 1), png.ROW, out.data)[:] = png.stored_rows(samples)

    def _fill_decoded(
        self, run: NDArray[np.int64], data: memoryview, places: list[int], out: NDArray[np.uint8]
    ) -> None:
        rows = zip(run.tolist(), places, self.sizes[run].tolist(), strict=True)
        for row, (i, place, size) in enumerate(rows):
            try:
                out[row] = self.decode(bytes(data[place : place + size]))
            except png.PngError as error:
                raise self._refusal(i, str(error)) from None

    def _refusal(self, i: int, why: str) -> DataError:
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        try:
            key = self.split.keys(np.array([i]))[0]
        except DataError:  # its sidecar is gone or altered as well
            key = f"number {i - self.starts[shard]}"
        return DataError(
            f"{self.files.paths[shard]}: sample {key} at byte {self.offsets[i]} was truncated or "
            f"altered ({why}); find all such samples with: "
            f"python -m shards.verify {self.split.root}"
        )

    def close(self) -> None:
        self.files.close()
