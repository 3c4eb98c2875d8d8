"""`shuffle`: how good the order of streaming is, beside an exact permutation.

Two figures for splits of several sizes. Displacement: how far a sample comes from its place in
the shards, as a share of the split; 1/3 on average after a uniform permutation. Mix: how far the
classes of a batch are from those of the split (total variation distance, in [0, 1]), on the worst
input there is, sorted by class; a uniform permutation has a distance too: batches are finite.
"""

from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say
from pipeline.order import BLOCKS_PER_WINDOW, STREAM_BLOCK, Order

SIZES = (10_000, 100_000, 1_000_000)
BATCH, CLASSES = 512, 7
ORDERS = {"stream": STREAM_BLOCK, "memory (exact)": 1}


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `shuffle`, one a size and order; a repeat is an epoch."""
    records = []
    for count in SIZES:
        say(f"shuffle: {count:,} samples")
        for name, block in ORDERS.items():
            order = Order(count, 0, block)
            epochs = [order.take(e * count, (e + 1) * count) for e in range(settings.repeats)]
            records.append(
                {
                    "kind": "shuffle",
                    "samples": count,
                    "order": name,
                    "displacement": spread([displacement(epoch) for epoch in epochs]),
                    "mix": spread([mix(epoch) for epoch in epochs]),
                }
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


def report(records: list[Record], settings: Settings) -> str:
    """A row a size and order."""
    rows = [["samples, order", "displacement (uniform: 0.333)", "distance of the class mix"]]
    rows += [_row(record) for record in records]
    window = BLOCKS_PER_WINDOW * STREAM_BLOCK
    return (
        f"windows of {window:,} samples in blocks of {STREAM_BLOCK}, batches of {BATCH}, "
        f"{CLASSES} classes: {CELL} over epochs\n{table(rows)}"
    )


def _row(record: dict[str, Any]) -> list[str]:
    name = f"{record['samples']:,}, {record['order']}"
    return [name, cell(record["displacement"], ".3f"), cell(record["mix"], ".4f")]
