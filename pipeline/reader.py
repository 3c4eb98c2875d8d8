"""Read patches from shards by their index, each checked by its CRC when it is first read.

Patches of a normalised split (`pipeline.units`) are normalised after decoding.

Reads are `os.preadv` into a buffer: a memory map counts as resident memory, and one that was
truncated kills Python with SIGBUS, where a read raises.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from deflate import crc32
from numpy.typing import NDArray

from common.errors import DataError
from pipeline.index import Split
from shards.codec import images, png
from shards.codec.png import Pixels
from shards.schema import CHANNELS, FOREIGN, PATCH

MAX_OPEN_FILES = 64
RUN = 64  # most samples in one system call
MAX_STEP = 1 << 16  # most bytes from one sample of a run to the next; the gap is read as well
READ_SIZE = 1024  # samples per batch when a split is read from end to end


class Files:
    """Read-only descriptors of a list of files; the least recently used is closed first."""

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
    """Decoder of the patches of one split, by sample index; not for two threads at once.

    Neighbours in a shard are read together: a run of them is one system call.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.starts = np.concatenate([[0], np.cumsum([s.count for s in split.metadata.shards])])
        self.files = Files([shard.tar(split.root) for shard in split.metadata.shards])
        self.offsets = split.index["offset"].to_numpy()
        self.sizes = split.index["size"].to_numpy()
        self.crcs = split.index["crc32"].to_numpy()
        self.checked = np.zeros(len(split), np.bool_)
        self.buffer = np.empty(0, np.uint8)  # reused: a new one costs page faults
        self.stored = split.png == "stored"
        self.decode = images.decode_trusted if split.png == FOREIGN else png.decode_trusted
        if self.stored and not (self.sizes == png.STORED_PNG_BYTES).all():
            raise DataError(
                f"{split.root}: a PNG of split {split.name} has another size than "
                f"{png.STORED_PNG_BYTES} bytes, those of a stored {PATCH}x{PATCH} patch: the data "
                f"set was altered, or packed for another patch size"
            )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()

    def read(self, indices: NDArray[np.int64], out: Pixels | None = None) -> Pixels:
        """Return patches (n, 32, 32, 3) in the order of `indices`, in `out` if it is passed.

        Raises:
            DataError: the bytes of a sample are missing or altered; names shard, key and offset.
        """
        if out is None:
            out = np.empty((len(indices), PATCH, PATCH, CHANNELS), np.uint8)
        fill = self._fill_stored if self.stored else self._fill_decoded
        for first, stop in pairwise(self._edges(indices)):
            run = indices[first:stop]
            data, starts = self._fetch(run)
            self._check(run, data, starts)
            fill(run, data, starts, out[first:stop])
        if self.split.normaliser is not None:
            self.split.normaliser.apply(out, indices)
        return out

    def _edges(self, indices: NDArray[np.int64]) -> list[int]:
        """Return where each run of samples close together in one shard begins, and the end."""
        if not len(indices):
            return [0]
        offsets, shards = self.offsets[indices], self.starts.searchsorted(indices, side="right")
        follow = (indices[1:] - indices[:-1] == 1) & (shards[1:] == shards[:-1])
        steps = offsets[1:] - offsets[:-1]  # np.diff would take as long as 20 samples
        least = png.STORED_PNG_BYTES if self.stored else 1  # rows of a sidecar may lie anywhere
        follow &= (steps >= least) & (steps <= MAX_STEP)
        if self.stored:  # one stride, so that a run is one array
            follow &= steps == (steps[follow][0] if follow.any() else 0)
        rows = [0, *((~follow).nonzero()[0] + 1).tolist(), len(indices)]
        return [r for first, stop in pairwise(rows) for r in range(first, stop, RUN)] + rows[-1:]

    def _fetch(self, run: NDArray[np.int64]) -> tuple[memoryview, list[int]]:
        """Return the bytes of a run, valid until the next one, and where its samples begin."""
        offsets = self.offsets[run]
        shard = int(np.searchsorted(self.starts, run[0], side="right")) - 1
        starts: list[int] = (offsets - offsets[0]).tolist()
        size = starts[-1] + int(self.sizes[run[-1]])
        if size > len(self.buffer):
            self.buffer = np.empty(size, np.uint8)
        data = self.buffer[:size].data
        got = os.preadv(self.files.descriptor(shard), [data], int(offsets[0]))
        if got != len(data):
            ends = np.array(starts) + self.sizes[run]
            row = int((ends > got).argmax())
            present = max(0, got - starts[row])
            raise self._refusal(int(run[row]), f"{present} of {self.sizes[run[row]]} bytes")
        return data, starts

    def _check(self, run: NDArray[np.int64], data: memoryview, starts: list[int]) -> None:
        if self.checked[run].all():
            return
        rows = zip(starts, self.sizes[run].tolist(), self.crcs[run].tolist(), strict=True)
        for row, (start, size, crc) in enumerate(rows):
            if crc32(data[start : start + size]) != crc:
                raise self._refusal(int(run[row]), "its checksum differs")
        self.checked[run] = True

    def _fill_stored(
        self, run: NDArray[np.int64], data: memoryview, starts: list[int], out: Pixels
    ) -> None:
        stride = starts[1] if len(starts) > 1 else png.STORED_PNG_BYTES
        shape = (len(run), png.STORED_PNG_BYTES)
        samples = np.ndarray(shape, np.uint8, data, strides=(stride, 1))
        np.ndarray((len(run), PATCH, 1), png.ROW, out.data)[:] = png.stored_rows(samples)

    def _fill_decoded(
        self, run: NDArray[np.int64], data: memoryview, starts: list[int], out: Pixels
    ) -> None:
        rows = zip(run.tolist(), starts, self.sizes[run].tolist(), strict=True)
        for row, (i, start, size) in enumerate(rows):
            try:
                out[row] = self.decode(bytes(data[start : start + size]))
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


def read_batches(split: Split, rows: NDArray[np.int64] | None = None) -> Iterator[Pixels]:
    """Yield the patches of a split, or of some of its rows, in order, READ_SIZE at a time."""
    rows = np.arange(len(split)) if rows is None else rows
    with Reader(split) as reader:
        for first in range(0, len(rows), READ_SIZE):
            yield reader.read(rows[first : first + READ_SIZE])


def read_split(split: Split, rows: NDArray[np.int64] | None = None) -> Pixels:
    """Return the patches (n, 32, 32, 3) of a split, or of some of its rows, in order."""
    rows = np.arange(len(split)) if rows is None else rows
    pixels = np.empty((len(rows), PATCH, PATCH, CHANNELS), np.uint8)
    with Reader(split) as reader:
        for first in range(0, len(rows), READ_SIZE):
            batch = slice(first, first + READ_SIZE)
            reader.read(rows[batch], pixels[batch])
    return pixels
