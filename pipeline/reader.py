"""Positioned reads of patches from shards: no memory maps, every sample checked by its CRC.

A truncated memory map kills Python with SIGBUS and counts as resident memory; `os.preadv` into a
buffer raises and does not.
"""

import os
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.index import Split
from shards import images, png
from shards.schema import CHANNELS, FOREIGN, PATCH, DataError

MAX_OPEN_FILES = 64


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
    """Decoded patches of one split by sample index. Not for use by two threads at once."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.starts = np.concatenate([[0], np.cumsum([s.count for s in split.card.shards])])
        self.files = Files([shard.tar(split.root) for shard in split.card.shards])
        self.offsets = split.table["offset"].to_numpy()
        self.sizes = split.table["size"].to_numpy()
        self.crcs = split.table["crc32"].to_numpy()
        self.stored = split.png == "stored"
        self.decode = images.decode_trusted if split.png == FOREIGN else png.decode_trusted
        if self.stored and not (self.sizes == png.STORED_PNG_BYTES).all():
            raise DataError(f"{split.root}: a PNG of split {split.name} is not of the stored size")

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 32, 32, 3) uint8 in the order of `indices`.

        Raises:
            DataError: a sample's bytes are missing or altered; names shard, key and byte offset.
        """
        if self.stored:
            return self._read_stored(indices)
        out = np.empty((len(indices), PATCH, PATCH, CHANNELS), np.uint8)
        scratch = np.empty(int(self.sizes[indices].max(initial=0)), np.uint8)
        for row, i in enumerate(indices):
            data = scratch.data[: self.sizes[i]]
            self._fetch(int(i), data)
            try:
                out[row] = self.decode(bytes(data))
            except png.PngError as error:
                raise self._refusal(int(i), str(error)) from None
        return out

    def _read_stored(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        raw = np.empty((len(indices), png.STORED_PNG_BYTES), np.uint8)
        view = raw.reshape(-1).data
        for row, i in enumerate(indices):
            start = row * png.STORED_PNG_BYTES
            self._fetch(int(i), view[start : start + png.STORED_PNG_BYTES])
        return np.ascontiguousarray(png.stored_pixels(raw))

    def _fetch(self, i: int, data: memoryview) -> None:
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        offset = int(self.offsets[i])
        got = os.preadv(self.files.descriptor(shard), [data], offset)
        if got != len(data):
            raise self._refusal(i, f"{got} of {len(data)} bytes")
        if zlib.crc32(data) != self.crcs[i]:
            raise self._refusal(i, "its checksum differs")

    def _refusal(self, i: int, why: str) -> DataError:
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        key = self.split.keys(np.array([i]))[0]
        return DataError(
            f"{self.files.paths[shard]}: sample {key} at byte {self.offsets[i]} was truncated or "
            f"altered ({why}); find all such samples with: "
            f"python -m shards.verify {self.split.root}"
        )

    def close(self) -> None:
        self.files.close()
