"""The patches to measure on, in every format that a tool reads: arrays, PNGs, our shards."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.settings import Settings
from bench.timing import log
from pipeline.index import open_dataset
from pipeline.reader import read_split
from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from shards.schema import CHANNELS, PATCH
from shards.synthetic.generate import SyntheticConfig, generate, sources

BASE = 4096  # distinct patches; larger sets repeat them, shifted
MOSAIC_SIDE = 32  # patches along a side of a mosaic
MAX_FILES = 50_000  # larger sets are packed from mosaics: 100,000 files take half a minute

Pixels = NDArray[np.uint8]


@contextmanager
def packed_folder(settings: Settings) -> Iterator[Path]:
    """Yield a packed folder with a train split; a synthetic one is removed at the end."""
    if settings.data is not None:
        yield Path(settings.data)
        return
    count = max(BASE, 4 * max(settings.sizes))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        raw, shards = Path(folder) / "raw", Path(folder) / "shards"
        log.info(f"making {count:,} synthetic patches")
        generate(raw, SyntheticConfig(train=count, val=0, test=0))
        pack(raw, shards, PackOptions())
        yield shards


class PatchSet:
    """A set of `count` patches in `folder`; each format is written at its first use."""

    def __init__(self, folder: Path, base: Pixels, base_labels: NDArray[np.int64], count: int):
        self.folder, self.count = folder, count
        folder.mkdir(parents=True)
        copies = -(-count // len(base))
        self.labels = np.tile(base_labels, copies)[:count]
        shape = (count, PATCH, PATCH, CHANNELS)
        array = np.lib.format.open_memmap(self.array, "w+", np.uint8, shape)
        for copy in range(copies):
            rows = array[copy * len(base) : (copy + 1) * len(base)]
            rows[:] = np.roll(base, (copy % PATCH, copy // PATCH), axis=(1, 2))[: len(rows)]
        array.flush()
        np.save(self.label_array, self.labels)

    @property
    def array(self) -> Path:
        """A NumPy file of (n, 32, 32, 3) uint8."""
        return self.folder / "pixels.npy"

    @property
    def label_array(self) -> Path:
        """A NumPy file of (n,) int64."""
        return self.folder / "labels.npy"

    @property
    def pixels(self) -> Pixels:
        """The patches (n, 32, 32, 3), memory-mapped."""
        pixels: Pixels = np.load(self.array, mmap_mode="r")
        return pixels

    def pngs(self) -> Path:
        """Write class folders of PNG files, compressed by PIL."""
        root = self.folder / "png"
        if not root.exists():
            for i, (pixels, label) in enumerate(zip(self.pixels, self.labels, strict=True)):
                path = root / f"class{label}" / f"image{i // 4:06d}__{i:07d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
        return root

    def packed(self, png: Literal["stored", "keep"]) -> Path:
        """Pack the set to our shards."""
        out = self.folder / png
        if not out.exists():
            if self.count <= MAX_FILES:
                pack(self.pngs(), out, PackOptions(png=png))
            else:
                pack(self._mosaics(), out, PackOptions(png="stored", convert="tile"))
        return out

    def _mosaics(self) -> Path:
        """Write images of 32x32 patches of one class; patches that do not fill one are left out."""
        root, tiles = self.folder / "mosaics", MOSAIC_SIDE * MOSAIC_SIDE
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            (root / f"class{label}").mkdir(parents=True)
            for number, start in enumerate(range(0, len(members) - tiles + 1, tiles)):
                grid = self.pixels[members[start : start + tiles]]
                grid = grid.reshape(MOSAIC_SIDE, MOSAIC_SIDE, PATCH, PATCH, CHANNELS).swapaxes(1, 2)
                side = MOSAIC_SIDE * PATCH
                image = Image.fromarray(grid.reshape(side, side, CHANNELS))
                image.save(root / f"class{label}" / f"mosaic{number:06d}.png", compress_level=0)
        return root


def patch_sets(settings: Settings, counts: Iterable[int]) -> Iterator[PatchSet]:
    """Yield a set of each number of patches; it is removed when the next is asked for."""
    base, labels = base_patches(settings)
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            yield PatchSet(Path(folder) / "made", base, labels, count)


def base_patches(settings: Settings) -> tuple[Pixels, NDArray[np.int64]]:
    """Read at most BASE patches (n, 32, 32, 3) and labels of `settings.data`, or generate them.

    Raises:
        DataError: the data set has no train split.
    """
    count = min(BASE, max(settings.patches))
    log.info("making the patches")
    if settings.data is not None:
        split = open_dataset(Path(settings.data)).split("train")
        rows = np.arange(min(count, len(split)))
        return read_split(split, rows), split.labels[rows]
    drawn = sources(SyntheticConfig(train=count, val=0, test=0))
    labelled = ((patch, source.stem.parent.name) for source in drawn for patch in source.patches)
    patches, names = zip(*islice(labelled, count), strict=True)
    return np.stack(patches), np.unique(names, return_inverse=True)[1]
