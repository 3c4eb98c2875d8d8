"""`shuffle`: how well streaming shuffles, compared with an exact permutation.

Two measures for splits of several sizes. Displacement: how far a sample moves from its place in
the shards, as a share of the split; 1/3 on average for a uniform permutation. Mix: how far the
classes of a batch are from those of the split (total variation distance, in [0, 1]) on the worst
input, sorted by class; not 0 for a uniform permutation either, since batches are finite.
"""

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from bench.records import CELL, Record, Spread
from bench.settings import Settings
from bench.timing import log
from common.console import table
from pipeline.loader import BLOCKS_PER_WINDOW, STREAM_BLOCK, Order

SIZES = (10_000, 100_000, 1_000_000)
BATCH, CLASSES = 512, 7
BLOCKS = {"stream": STREAM_BLOCK, "memory (exact)": 1}  # samples per block of an order


class Shuffling(Record, tag="shuffle", frozen=True):
    """How well an order shuffles a number of samples; a repeat is an epoch."""

    samples: int
    order: str
    displacement: Spread
    mix: Spread


def measure(settings: Settings, accelerator: Accelerator) -> list[Shuffling]:
    """Measure each order on each number of samples."""
    records = []
    for count in SIZES:
        log.info(f"shuffle: {count:,} samples")
        for name, block in BLOCKS.items():
            order = Order(count, 0, block)
            epochs = [order.take(e * count, (e + 1) * count) for e in range(settings.repeats)]
            distances = Spread.of([displacement(epoch) for epoch in epochs])
            records.append(
                Shuffling(count, name, distances, Spread.of([mix(epoch) for epoch in epochs]))
            )
    return records


def displacement(order_N: NDArray[np.int64]) -> float:
    """Mean distance of a sample from its place, as a share of the split."""
    return float(np.abs(order_N - np.arange(len(order_N))).mean() / len(order_N))


def mix(order_N: NDArray[np.int64]) -> float:
    """Mean total variation distance of the classes of a batch, for input sorted by class."""
    count = len(order_N) // BATCH * BATCH
    labels = order_N[:count] * CLASSES // len(order_N)
    batches = labels.reshape(-1, BATCH)
    shares = np.stack([(batches == c).mean(1) for c in range(CLASSES)], 1)
    return float(0.5 * np.abs(shares - 1 / CLASSES).sum(1).mean())


def report(records: list[Shuffling], settings: Settings) -> str:
    """Show a row per number of samples and order."""
    rows = [["samples, order", "displacement (uniform: 0.333)", "distance of the class mix"]]
    rows += [
        [f"{r.samples:,}, {r.order}", f"{r.displacement:.3f}", f"{r.mix:.4f}"] for r in records
    ]
    window = BLOCKS_PER_WINDOW * STREAM_BLOCK
    return (
        f"windows of {window:,} samples in blocks of {STREAM_BLOCK}, batches of {BATCH}, "
        f"{CLASSES} classes: {CELL} over epochs\n{table(rows)}"
    )
