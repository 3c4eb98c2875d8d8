"""Our ways to read shuffled batches, and the interface of every reader of the mode `read`.

A reader yields each patch once per epoch, in a new order each time, as uint8 arrays with labels.
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
    """`make` writes the set in the reader's own format, `open` opens that."""

    make: Callable[[PatchSet], Path]
    open: Callable[[Path, int], Epochs]  # what `make` returned, batch size


def consume(batches: Iterator[Batch]) -> int:
    """Read an epoch, and count its samples."""
    return sum(len(labels) for _, labels in batches)


def read_by_loader(storage: str, root: Path, batch: int) -> Epochs:
    """Read our shards with the loader of training."""
    split = open_dataset(root).split("train")
    loader = Loader(split, batch, 0, torch.device("cpu"), storage)

    def epoch(number: int) -> Iterator[Batch]:
        for images, labels, _ in loader.batches(number * len(split), (number + 1) * len(split)):
            yield images.numpy(), labels.numpy()

    return epoch


def fill_memory(root: Path, batch: int) -> Epochs:
    """Open the set and decode all of it into memory for every epoch anew."""
    return lambda number: read_by_loader("host", root, batch)(number)


def gather(root: Path, batch: int) -> Epochs:
    """Read random rows of a memory-mapped array."""
    pixels, labels = np.load(root / "pixels.npy", mmap_mode="r"), np.load(root / "labels.npy")
    flat = pixels.reshape(len(pixels), PATCH_BYTES)

    def epoch(number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(flat))
        for start in range(0, len(flat), batch):
            rows = order[start : start + batch]
            yield np.take(flat, rows, axis=0).reshape(-1, *pixels.shape[1:]), labels[rows]

    return epoch


def our_shards(png: Literal["stored", "keep"]) -> Callable[[PatchSet], Path]:
    """Make a function that packs a set to our shards."""
    return lambda patches: patches.packed(png)


OURS = {
    "stored, stream": Reader(our_shards("stored"), partial(read_by_loader, "stream")),
    "keep, stream": Reader(our_shards("keep"), partial(read_by_loader, "stream")),
    "stored, first epoch into memory": Reader(our_shards("stored"), fill_memory),
    "keep, first epoch into memory": Reader(our_shards("keep"), fill_memory),
    "from memory": Reader(our_shards("stored"), partial(read_by_loader, "host")),
    LIMIT: Reader(attrgetter("folder"), gather),
}
LARGE = ("stored, stream", "from memory", LIMIT)  # readers of sets of more than MAX_FILES
