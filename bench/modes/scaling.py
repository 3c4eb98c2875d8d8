"""`scaling`: packing and reading by 1, 2, 4 ... processes, up to the cores that may be used.

Readers are the ranks of one training that streams: each gives its share of every global batch, and
a round is an epoch of all of them together. Each round begins with a loader that holds no block, so
that every block is read and checked; the shards are in the page cache.
"""

import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from bench.made import Made, base
from bench.modes import packing
from bench.modes.reading import BATCH, consume
from bench.processes import READY, Process, answer, expect, started, tell
from bench.settings import Settings
from bench.spent import spent
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say, rounds
from common.errors import DataError
from common.machine import usable_cores
from pipeline.index import open_dataset
from pipeline.loader import Loader

_FILES = 200_000  # as many are written to be packed


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `scaling`: a task, a number of patches, a number of processes."""
    say("scaling: making the patches")
    pixels, labels = base(settings)
    crews = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= usable_cores()]
    records: list[Record] = []
    for patches in settings.patches:
        if patches < crews[-1]:
            raise DataError(f"{patches} patches for {crews[-1]} processes: give more --patches")
        batch = min(BATCH, patches // crews[-1])  # of a process
        count = patches // (batch * crews[-1]) * batch * crews[-1]  # an epoch is whole batches
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            made = Made(Path(folder) / "made", pixels, labels, count)
            if count <= _FILES:
                records += _packing(made, crews, settings, say)
            records += _reading(made, crews, batch, settings, say)
    return records


def _packing(made: Made, crews: list[int], settings: Settings, say: Say) -> list[Record]:
    root, out = made.pngs(), made.folder / "out"

    def seconds(workers: int) -> float:
        taken = spent(lambda: packing.packed(packing.options("stored", workers), root, out))
        shutil.rmtree(out)
        return taken.seconds

    say(f"scaling: packing {made.count:,} patches with {crews} processes in turn")
    found = rounds({n: partial(seconds, n) for n in crews}, settings.repeats, say)
    return [_record("pack, stored", made.count, n, found[n]) for n in crews]


def _reading(
    made: Made, crews: list[int], batch: int, settings: Settings, say: Say
) -> list[Record]:
    root = made.packed("stored")
    say(f"scaling: reading {made.count:,} patches with {crews} processes")
    found: dict[int, list[float]] = {}
    for n in crews:  # not in turn: so many processes would lie in memory at once
        orders = [[str(root), *map(str, (rank, n, batch))] for rank in range(n)]
        with started("bench.modes.scaling", orders) as ranks:
            found[n] = [_epoch(ranks) for _ in range(settings.repeats)]
    return [_record("read, stored, streamed", made.count, n, found[n]) for n in crews]


def _epoch(processes: list[Process]) -> float:
    """Seconds until the last of them has given its share of an epoch."""
    began = time.perf_counter()
    for process in processes:
        tell(process)
    for process in processes:
        expect(process, READY)
    return time.perf_counter() - began


def _record(task: str, patches: int, processes: int, seconds: list[float]) -> Record:
    return {
        "kind": "scaling",
        "task": task,
        "patches": patches,
        "processes": processes,
        "patches_per_s": spread([patches / s for s in seconds]),
    }


def read(root: Path, rank: int, world: int, batch: int) -> None:
    """One of the readers: an epoch each time it is told to go."""
    split = open_dataset(root).split("train")
    while True:
        loader = Loader(split, batch * world, 0, torch.device("cpu"), "stream", rank, world)
        batches = loader.batches(0, len(split))
        consume((found.images.numpy(), found.labels.numpy()) for found in batches)
        answer(READY)
        if not sys.stdin.readline():
            return


def report(records: list[Record], settings: Settings) -> str:
    """A table for each task and number of patches."""
    parts = []
    for task, patches in dict.fromkeys((r["task"], r["patches"]) for r in records):
        mine = [r for r in records if (r["task"], r["patches"]) == (task, patches)]
        alone = mine[0]["patches_per_s"]["median"]
        rows = [["processes", "patches/s", "x one"]]
        for record in mine:
            rate = record["patches_per_s"]
            rows.append([str(record["processes"]), cell(rate), f"{rate['median'] / alone:.2f}"])
        parts.append(f"{task}, {patches:,} patches: {CELL}\n{table(rows)}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    read(Path(sys.argv[1]), *map(int, sys.argv[2:]))
