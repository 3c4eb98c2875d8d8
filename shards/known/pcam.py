"""PatchCamelyon: 96x96 patches of Camelyon16 in HDF5 files, labelled by their centre 32x32.

    camelyonpatch_level_2_split_{train,valid,test}_x.h5         x (n, 96, 96, 3) uint8
    camelyonpatch_level_2_split_{train,valid,test}_y.h5         y (n, 1, 1, 1): 1 is tumour
    camelyonpatch_level_2_split_{train,valid,test}_meta.csv     the slide of each, column wsi

The arrays may be compressed, as they are downloaded: `_x.h5.gz` is unpacked when it is read, into a
file beside the shards, and `_y.h5.gz` in memory.

The centre 32x32 is packed: the label says whether it holds a pixel of tumour. The table also has
coordinates; what they are relative to is not documented, so they are left out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from shards.known.gz import read_gz
from shards.known.hdf5 import open_array
from shards.known.inputs import Inputs, read_table
from shards.schema import PATCH
from shards.sources.source import Collection, Patch

MPP = 0.972  # 40x at 0.243, reduced four times
RULE = "the slide that the column wsi of the table names"

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_CLASSES = ("normal", "tumor")
_SHAPE = (96, 96, 3)
_FIRST = (_SHAPE[0] - PATCH) // 2
_MAX_PATCHES = 1 << 24
_MAX_LABEL_BYTES = 64 << 20
MAX_BYTES = 8_000_000_000  # of a file of images: those of train are 7.2 GB


def collect(inputs: Inputs) -> Collection:
    """List the patches of the splits.

    Raises:
        DataError: a file is missing or is not as described above; another number of patches.
    """
    patches: list[Patch] = []
    for name, split in _SPLITS.items():
        stem = f"camelyonpatch_level_2_split_{name}"
        if inputs.partial and _find(inputs, f"{stem}_x.h5") is None:
            continue
        images = _find(inputs, f"{stem}_x.h5") or inputs.require(f"{stem}_x.h5")
        labels = _labels(_find(inputs, f"{stem}_y.h5") or inputs.require(f"{stem}_y.h5"))
        table = inputs.require(f"{stem}_meta.csv")
        slides = read_table(table, ["wsi"])["wsi"]
        count = len(labels) if images.suffix == ".gz" else _count(images)
        inputs.check_count(images, "patches", count, inputs.facts.counts[name])
        if not count == len(labels) == len(slides):
            raise DataError(
                f"{images} has {count:,} patches, {stem}_y.h5 {len(labels):,} labels and {table} "
                f"{len(slides):,} rows: they are of different versions or subsets"
            )
        status, path = images.stat(), inputs.relative(images)
        patches += [
            Patch(
                path=f"{path}/{i:06d}",
                label=_CLASSES[label],
                split=split,
                source=slide,
                y=None,
                x=None,
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
                slide=slide,
                mpp=MPP,
            )
            for i, (label, slide) in enumerate(zip(labels.tolist(), slides, strict=True))
        ]
    if not patches:
        inputs.require("camelyonpatch_level_2_split_train_x.h5")
    return inputs.collection(patches, RULE, notes=["the centre 32x32 of each 96x96 patch"])


def read(root: Path, file: str, blocks: Sequence[Sequence[Patch]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of each block of patches of a file, (n, 32, 32, 3)."""
    with _opened(root / file) as x:
        if int(blocks[-1][-1].path.rpartition("/")[2]) >= x.shape[0]:
            raise DataError(f"{root / file} has {x.shape[0]:,} patches, and there are more labels")
        for block in blocks:
            rows = np.array([int(patch.path.rpartition("/")[2]) for patch in block])
            first = int(rows.min())
            images = x[first : int(rows.max()) + 1]
            centre = images[rows - first, _FIRST : _FIRST + PATCH, _FIRST : _FIRST + PATCH]
            yield np.ascontiguousarray(centre)


def _find(inputs: Inputs, name: str) -> Path | None:
    """Return the file of this name, or else the one that unpacks to it."""
    return inputs.find(name) or inputs.find(f"{name}.gz")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the images of a split."""
    with open_array(path, "x") as x:
        if x.dtype != np.uint8 or x.shape[1:] != _SHAPE:
            raise DataError(f"{path}: x is {x.dtype} {x.shape}, expected uint8 (n, 96, 96, 3)")
        yield x


def _count(path: Path) -> int:
    with _opened(path) as x:
        return int(x.shape[0])


def _labels(path: Path) -> NDArray[np.int64]:
    content = read_gz(path, _MAX_LABEL_BYTES) if path.suffix == ".gz" else None
    with open_array(path, "y", content) as y:
        shape, kind = y.shape, y.dtype.kind
        if kind not in "iub" or not 0 < len(shape) <= 4 or set(shape[1:]) - {1}:
            raise DataError(f"{path}: y is {y.dtype} {shape}, expected integers (n, 1, 1, 1)")
        if shape[0] > _MAX_PATCHES:
            raise DataError(f"{path}: y has {shape[0]:,} labels, expected {_MAX_PATCHES:,} at most")
        labels = y[:].reshape(-1).astype(np.int64)
    bad = np.flatnonzero((labels < 0) | (labels >= len(_CLASSES)))
    if len(bad):
        raise DataError(f"{path}: label {bad[0]} is {labels[bad[0]]}, expected 0 or 1")
    return labels
