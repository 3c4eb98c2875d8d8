"""`ArraySource`: patches of arrays, or of images that hold many, staged block after block."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from common.console import log, progress
from shards.codec.png import STORED_ROW
from shards.known import crchisto, pathmnist, pcam
from shards.known.gz import unpacked
from shards.known.inputs import Inputs
from shards.known.sets import ArraySet
from shards.schema import PATCH
from shards.sources.source import Collection, LookUp, Patch, ReadPatch, refuse_change
from shards.sources.staged import open_scratch, open_staged, read_done, write_done, write_rows

_ROWS = 1024  # of an array that are read together: 28 MB of 96x96 patches

_Read = Callable[[Path, str, Sequence[Sequence[Patch]]], Iterator[NDArray[np.uint8]]]


@dataclass(frozen=True)
class _Set:
    collect: Callable[[Inputs], Collection]
    read: _Read  # pixels (n, 32, 32, 3) of each block of patches of a file below the root


_SETS: Mapping[ArraySet, _Set] = {
    "pcam": _Set(pcam.collect, pcam.read),
    "pathmnist": _Set(pathmnist.collect, pathmnist.read),
    "crchisto": _Set(crchisto.collect, crchisto.read),
}


@dataclass(frozen=True)
class _Block:
    """Patches that are read together."""

    file: str  # array or image, below the root
    name: str
    patches: list[tuple[int, Patch]]


class ArraySource(Struct, frozen=True, kw_only=True, tag=True):
    """A public set of arrays or large images."""

    is_slow: ClassVar[bool] = True

    name: ArraySet
    paths: tuple[Path, ...]
    partial: bool = False
    staged: Path | None = None  # file that holds the patches

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches.

        Raises:
            DataError: a file is missing, damaged or of another set; another number of patches.
        """
        return _SETS[self.name].collect(self._inputs)

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        """Write the patches to `scratch`, or continue where an interrupted call stopped.

        Raises:
            DataError: a file is damaged or changed since it was listed, or the disk is full.
        """
        done = read_done(scratch)
        blocks = _blocks(patches)
        missing = [block for block in blocks if block.name not in {*done}]
        if len(missing) < len(blocks):
            log.info(
                f"continuing: {len(blocks) - len(missing):,} of {len(blocks):,} blocks are read"
            )
        total = sum(len(block.patches) for block in missing)
        with open_scratch(scratch) as handle, progress("reading", total, "patches") as advance:
            for block in self._write(handle, scratch, missing):
                done.append(block.name)
                write_done(handle, scratch, done)
                advance(len(block.patches))
        return structs.replace(self, staged=scratch)

    @property
    def _inputs(self) -> Inputs:
        return Inputs(self.name, self.paths, self.partial)

    def _write(self, handle: int, scratch: Path, blocks: list[_Block]) -> Iterator[_Block]:
        """Write blocks to `scratch`, and yield each that is whole. The last one of a file is so
        when the file has been read to its end, where a checksum may show that it is damaged."""
        root = self._inputs.root
        for file, group in groupby(blocks, key=lambda block: block.file):
            of_file = list(group)
            patches = [[patch for _, patch in block.patches] for block in of_file]
            written: list[_Block] = []
            arrays = self._pixels(file, scratch, patches)
            for block, pixels in zip(of_file, arrays, strict=True):
                yield from written
                rows = np.zeros((len(pixels), PATCH, STORED_ROW), np.uint8)
                rows[:, :, 1:] = pixels.reshape(len(pixels), PATCH, -1)
                for (key, _), row in zip(block.patches, rows, strict=True):
                    write_rows(handle, key, row.reshape(-1).data)
                path = root / file
                refuse_change(path if path.is_file() else path.parent, patches[0][0])
                written = [block]
            yield from written

    def _pixels(
        self, file: str, scratch: Path, blocks: Sequence[Sequence[Patch]]
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the pixels of blocks of a file, which is unpacked beside `scratch` meanwhile where
        it is compressed."""
        root, read = self._inputs.root, _SETS[self.name].read
        if not file.endswith(".gz"):
            yield from read(root, file, blocks)
            return
        target = scratch.with_name(f".unpacked-{Path(file).stem}")
        with unpacked(root / file, target, pcam.MAX_BYTES):
            yield from read(target.parent, target.name, blocks)

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        assert self.staged is not None
        with open_staged(self.staged) as read:
            yield read


def _blocks(patches: Iterable[tuple[int, Patch]]) -> list[_Block]:
    """Group patches by file and, of an array, by _ROWS rows: by the same whatever is missing."""

    def place(keyed: tuple[int, Patch]) -> tuple[str, int]:
        patch = keyed[1]
        if patch.tile is not None:
            return patch.path, 0
        file, _, row = patch.path.rpartition("/")
        return file, int(row) // _ROWS

    keyed = sorted(patches, key=lambda item: (*place(item), item[1].path, item[0]))
    return [
        _Block(file, f"{file}:{number}", list(group))
        for (file, number), group in groupby(keyed, key=place)
    ]
