"""Our ways to read shuffled batches, and what every reader of the mode `read` has to give.

A reader gives each patch once per epoch, in an order that changes, as uint8 arrays with labels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bench.patches import PatchSet
from pipeline.index import open_dataset
from pipeline.loader import Loader
from shards.schema import PATCH_BYTES

REFERENCE = "webdataset, PIL, its own tar"
LIMIT = "limit: random gather from a memory-mapped array"

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (b, 32, 32, 3) or (b, 3, 32, 32); (b,)
Epochs = Callable[[int], Iterator[Batch]]  # epoch number to its batches


class Reader(NamedTuple):
    """`make` writes the reader's own form of the set, `open` opens it."""

    make: Callable[[PatchSet], Path]
    open: Callable[[Path, int], Epochs]  # what `make` returned, batch size


def consume(batches: Iterator[Batch]) -> int:
    """Count the samples of an epoch; nothing is kept."""
    return sum(len(labels) for _, labels in batches)


def _loader(storage: str, root: Path, batch: int) -> Epochs:
    split = open_dataset(root).split("train")
    loader = Loader(split, batch, 0, torch.device("cpu"), storage)

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels, _ in loader.batches(number * len(split), (number + 1) * len(split)):
            yield images.numpy(), labels.numpy()

    return epoch


def _filling(root: Path, batch: int) -> Epochs:
    """Open the set, decode all of it into memory and give the first epoch, each time."""
    return lambda number: _loader("host", root, batch)(number)


def _gather(root: Path, batch: int) -> Epochs:
    pixels, labels = np.load(root / "pixels.npy", mmap_mode="r"), np.load(root / "labels.npy")
    flat = pixels.reshape(len(pixels), PATCH_BYTES)

    def epoch(number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(flat))
        for start in range(0, len(flat), batch):
            rows = order[start : start + batch]
            yield np.take(flat, rows, axis=0).reshape(-1, *pixels.shape[1:]), labels[rows]

    return epoch


def _shards(png: Literal["stored", "keep"]) -> Callable[[PatchSet], Path]:
    return lambda patches: patches.packed(png)


OURS = {
    "stored, stream": Reader(_shards("stored"), partial(_loader, "stream")),
    "keep, stream": Reader(_shards("keep"), partial(_loader, "stream")),
    "stored, first epoch into memory": Reader(_shards("stored"), _filling),
    "keep, first epoch into memory": Reader(_shards("keep"), _filling),
    "from memory": Reader(_shards("stored"), partial(_loader, "host")),
    LIMIT: Reader(attrgetter("folder"), _gather),
}
LARGE = ("stored, stream", "from memory", LIMIT)  # for sets too large for a file per patch
