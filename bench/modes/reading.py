"""`read`: shuffled epochs of uint8 batches with labels, by our loader and by other tools.

Every contestant gives each patch once an epoch, in an order that changes, as uint8 arrays and
labels; ours check every sample read from a shard by its CRC. Memory is that of this process.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from numpy.typing import NDArray

from bench.made import FEW, Made, base
from bench.settings import Settings
from bench.spent import Spent, resident, spent
from bench.table import CELL, Record, cell, not_measured, spread, table
from bench.timing import Say, rounds
from pipeline.index import open_dataset
from pipeline.loader import Loader
from shards.schema import PATCH_BYTES

BATCH = 512
SECONDS = 0.5  # of a round, at least: an epoch from memory takes milliseconds
REFERENCE = "webdataset, PIL, its own tar"
LIMIT = "limit: random gather from a memory-mapped array"

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (b, 32, 32, 3) or (b, 3, 32, 32); (b,)
Epochs = Callable[[int], Iterator[Batch]]  # epoch number to its batches


class Reading(NamedTuple):
    """A contestant: `make` writes its own form of the set, `epochs` opens it."""

    make: Callable[[Made], Path]
    epochs: Callable[[Path, int], Epochs]  # what `make` returned, batch size


def _loader(storage: str, root: Path, batch: int) -> Epochs:
    split = open_dataset(root).split("train")
    loader = Loader(split, batch, 0, torch.device("cpu"), storage)

    def epoch(number: int) -> Iterator[Batch]:
        for found in loader.batches(number * len(split), (number + 1) * len(split)):
            yield found.images.numpy(), found.labels.numpy()

    return epoch


def _filling(root: Path, batch: int) -> Epochs:
    """Opens the set, decodes all of it into memory and gives the first epoch, each time."""
    return lambda number: _loader("host", root, batch)(number)


def _gather(root: Path, batch: int) -> Epochs:
    pixels, labels = np.load(root / "pixels.npy", mmap_mode="r"), np.load(root / "labels.npy")
    rows = pixels.reshape(len(pixels), PATCH_BYTES)

    def epoch(number: int) -> Iterator[Batch]:
        order = np.random.default_rng(number).permutation(len(rows))
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            yield np.take(rows, chosen, axis=0).reshape(-1, *pixels.shape[1:]), labels[chosen]

    return epoch


def _shards(png: Literal["stored", "keep"], made: Made) -> Path:
    return made.packed(png)


def _arrays(made: Made) -> Path:
    return made.folder


OURS = {
    "stored, stream": Reading(partial(_shards, "stored"), partial(_loader, "stream")),
    "keep, stream": Reading(partial(_shards, "keep"), partial(_loader, "stream")),
    "stored, first epoch into memory": Reading(partial(_shards, "stored"), _filling),
    "keep, first epoch into memory": Reading(partial(_shards, "keep"), _filling),
    "from memory": Reading(partial(_shards, "stored"), partial(_loader, "host")),
    LIMIT: Reading(_arrays, _gather),
}
LARGE = ("stored, stream", "from memory", LIMIT)  # of sets too large for a file a patch


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """A record of kind `read` for each contestant and number of patches."""
    contestants = OURS
    if settings.peers:
        from bench.peers import PEERS

        contestants = OURS | PEERS
    say("read: making the patches")
    pixels, labels = base(settings)
    records: list[Record] = []
    for patches in settings.patches:
        batch = min(BATCH, patches)
        count = patches // batch * batch  # of ours no epoch shares a batch with the next
        chosen = contestants if count <= FEW else {name: OURS[name] for name in LARGE}
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            made = Made(Path(folder) / "made", pixels, labels, count)
            records += _race(chosen, made, batch, settings, say)
    return records


def _race(
    contestants: dict[str, Reading], made: Made, batch: int, settings: Settings, say: Say
) -> list[Record]:
    opened: dict[str, Epochs] = {}
    records: dict[str, Record] = {}
    for name, reading in contestants.items():
        say(f"read: {made.count:,} patches: preparing {name}")
        records[name] = {"kind": "read", "reader": name, "patches": made.count}
        try:
            root = reading.make(made)
            before = resident()
            opened[name] = reading.epochs(root, batch)
            consume(opened[name](0))
        except Exception as error:  # a tool of others may fail in any way: the table says so
            if name in OURS:
                raise
            records[name]["patches_per_s"] = not_measured(f"{type(error).__name__}: {error}")
            opened.pop(name, None)
            continue
        records[name]["opened_bytes"] = resident() - before
        records[name]["bytes_per_patch"] = _size(root) / made.count
    results: dict[str, list[tuple[int, Spent]]] = {name: [] for name in opened}

    def block(name: str) -> float:
        begun = 1 + sum(epochs for epochs, _ in results[name])
        results[name].append(_timed(opened[name], begun))
        return results[name][-1][1].seconds

    rounds({name: partial(block, name) for name in opened}, settings.repeats, say)
    for name, found in results.items():
        records[name] |= {
            "patches_per_s": spread([made.count * n / taken.seconds for n, taken in found]),
            "patches_per_core_s": spread([made.count * n / t.core_seconds for n, t in found]),
            "grown_bytes": sum(taken.grown for _, taken in found),
        }
    return list(records.values())


def _timed(epochs: Epochs, first: int) -> tuple[int, Spent]:
    """Whole epochs from number `first` on, one or as many as fill the time; how many, and that."""
    done = 0

    def work() -> None:
        nonlocal done
        began = time.perf_counter()
        while not done or time.perf_counter() - began < SECONDS:
            consume(epochs(first + done))
            done += 1

    taken = spent(work)
    return done, taken


def consume(batches: Iterator[Batch]) -> int:
    """The samples of an epoch; nothing is kept."""
    return sum(len(labels) for _, labels in batches)


def contents(batches: Iterator[Batch]) -> Counter[tuple[str, int]]:
    """How often each pair of pixels (by hash) and label is among the batches."""
    found: Counter[tuple[str, int]] = Counter()
    for images, labels in batches:
        if images.shape[1] == 3:
            images = np.moveaxis(images, 1, 3)
        for image, label in zip(images, labels, strict=True):
            found[xxhash.xxh3_64_hexdigest(image.tobytes()), int(label)] += 1
    return found


def _size(root: Path) -> int:
    """Bytes under a folder, without the forms of the set that other contestants made in it."""
    if (root / "pixels.npy").exists():
        return (root / "pixels.npy").stat().st_size + (root / "labels.npy").stat().st_size
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


HEADER = [
    "reader", "patches/s", "patches/s a core", "x PIL", "of the limit", "bytes/patch",
    "opened MB", "grown MB",
]  # fmt: skip


def report(records: list[Record], settings: Settings) -> str:
    """A table for each number of patches; what could not be measured stands below with why."""
    parts = []
    for count in dict.fromkeys(record["patches"] for record in records):
        mine = {record["reader"]: record for record in records if record["patches"] == count}
        rates = {
            name: record["patches_per_core_s"]["median"]
            for name, record in mine.items()
            if "patches_per_core_s" in record
        }
        rows = [HEADER, *(_row(mine[name], rates) for name in rates)]
        failed = [
            f"  not measured: {name}: {record['patches_per_s']['not_measured'].splitlines()[0]}"
            for name, record in mine.items()
            if name not in rates
        ]
        title = f"{count:,} patches, shuffled batches of {min(BATCH, count)}: {CELL}"
        parts.append("\n".join([title, table(rows), *failed]))
    return "\n\n".join(parts)


def _row(record: Record, rates: dict[str, float]) -> list[str]:
    rate = rates[record["reader"]]
    reference: Any = rates.get(REFERENCE)
    return [
        record["reader"],
        cell(record["patches_per_s"]),
        cell(record["patches_per_core_s"]),
        "-" if reference is None else f"{rate / reference:.1f}",
        f"{rate / rates[LIMIT]:.1%}",
        f"{record['bytes_per_patch']:,.0f}",
        f"{record['opened_bytes'] / 1e6:,.1f}",
        f"{record['grown_bytes'] / 1e6:,.1f}",
    ]
