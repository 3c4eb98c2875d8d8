"""`scaling`: packing and reading by 1, 2, 4 ... processes, up to the cores that may be used.

Readers are the ranks of one training run that streams: each yields its share of every global batch,
and a round is an epoch of all of them together. Each round begins with an empty loader, so that
every block is read and checked; the shards are in the page cache.
"""

import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from bench.modes.packing import pack_folder
from bench.modes.processes import READY, answer, expect_ready, started, tell
from bench.modes.reading import BATCH
from bench.patches import PatchSet, patch_sets
from bench.readers import consume
from bench.records import CELL, Record, Spread, grouped
from bench.settings import Settings
from bench.timing import log, rounds, usage
from common.console import table
from common.errors import DataError
from common.machine import usable_cores
from pipeline.index import open_dataset
from pipeline.loader import Loader

MAX_FILES = 200_000  # larger sets are not packed from files
PROCESSES = (1, 2, 4, 8, 16, 32, 64)


class Scaling(Record, tag="scaling", frozen=True):
    """Speed of a task by a number of processes."""

    task: str
    patches: int
    processes: int
    patches_per_s: Spread


def measure(settings: Settings, accelerator: Accelerator) -> list[Scaling]:
    """Time packing and reading on each number of patches."""
    counts = [n for n in PROCESSES if n <= usable_cores()]
    if min(settings.patches) < counts[-1]:
        raise DataError(
            f"{min(settings.patches)} patches for {counts[-1]} processes: raise --patches"
        )
    batches = [min(BATCH, count // counts[-1]) * counts[-1] for count in settings.patches]
    sizes = [count // batch * batch for count, batch in zip(settings.patches, batches, strict=True)]
    records: list[Scaling] = []
    for patches, batch in zip(patch_sets(settings, sizes), batches, strict=True):
        seconds = {}
        if patches.count <= MAX_FILES:
            seconds["pack, stored"] = _pack(patches, counts, settings.repeats)
        each = batch // counts[-1]
        seconds["read, stored, streamed"] = _read(patches, counts, each, settings.repeats)
        for task, by_processes in seconds.items():
            for n in counts:
                rate = Spread.of([patches.count / s for s in by_processes[n]])
                records.append(Scaling(task, patches.count, n, rate))
    return records


def _pack(patches: PatchSet, counts: list[int], repeats: int) -> dict[int, list[float]]:
    """Measure the seconds of packing by number of processes."""
    root, out = patches.pngs(), patches.folder / "out"

    def seconds(workers: int) -> float:
        used = usage(lambda: pack_folder("stored", workers, root, out))
        shutil.rmtree(out)
        return used.seconds

    log.info(f"scaling: packing {patches.count:,} patches with {counts} processes in turn")
    return rounds({n: partial(seconds, n) for n in counts}, repeats)


def _read(patches: PatchSet, counts: list[int], batch: int, repeats: int) -> dict[int, list[float]]:
    """Measure the seconds until the last process has read its share, by number of processes."""
    root = patches.packed("stored")
    log.info(f"scaling: reading {patches.count:,} patches with {counts} processes")
    seconds: dict[int, list[float]] = {n: [] for n in counts}
    for n in counts:  # not in turn, which would keep all processes in memory at once
        arguments = [[str(root), str(rank), str(n), str(batch)] for rank in range(n)]
        with started("bench.modes.scaling", arguments) as ranks:
            for _ in range(repeats):
                began = time.perf_counter()
                tell(ranks)
                expect_ready(ranks)
                seconds[n].append(time.perf_counter() - began)
    return seconds


def read(root: Path, rank: int, world: int, batch: int) -> None:
    """Read a rank's share of an epoch for each line on standard input; the main program."""
    split = open_dataset(root).split("train")
    while True:
        loader = Loader(split, batch * world, 0, torch.device("cpu"), "stream", rank, world)
        batches = loader.batches(0, len(split))
        consume((images.numpy(), labels.numpy()) for images, labels, _ in batches)
        answer(READY)
        if not sys.stdin.readline():
            return


def report(records: list[Scaling], settings: Settings) -> str:
    """Show a table per task and number of patches."""
    tables = []
    for (task, patches), group in grouped(records, lambda r: (r.task, r.patches)).items():
        alone = group[0].patches_per_s.median
        rows = [["processes", "patches/s", "x one"]]
        for r in group:
            ratio = r.patches_per_s.median / alone
            rows.append([str(r.processes), f"{r.patches_per_s}", f"{ratio:.2f}"])
        tables.append(f"{task}, {patches:,} patches: {CELL}\n{table(rows)}")
    return "\n\n".join(tables)


if __name__ == "__main__":
    torch.set_num_threads(1)
    read(Path(sys.argv[1]), *map(int, sys.argv[2:]))
