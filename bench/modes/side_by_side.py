"""`side-by-side`: the throughput of one device when 1, 2 and 4 training runs share it.

Each run is a process of its own: it makes its trainer, warms up, says that it is ready and waits.
When all are ready all are told to go; each counts the images of its steps until the window is
over, and goes on training until every other is done too, so that none is watched alone. The total
is the sum of what each reached in the same window. On a CPU the cores are shared out evenly.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bench.data import packed
from bench.ladder import WARMUP, endless, make_trainer
from bench.processes import READY, Process, answer, expect, line, started, tell
from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say
from common.machine import usable_cores
from pipeline.index import open_dataset
from pipeline.loader import Batch
from train import launch
from train.config import PRESETS
from train.loop import Trainer

PRESET = "dvae"
RUNS = (1, 2, 4)


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `runs`, one a number of runs: images/s of all together and of each."""
    records = []
    with packed(settings, say) as root:
        for runs in RUNS:
            threads = max(1, usable_cores() // runs)
            say(f"side by side: {runs} at once, {threads} threads each: starting")
            one = replace(settings, data=str(root))
            order = json.dumps({"settings": asdict(one), "threads": threads})
            with started("bench.modes.side_by_side", [[order]] * runs) as processes:
                say(f"side by side: {settings.repeats} windows of {settings.window:g} s")
                rates = [_window(processes) for _ in range(settings.repeats)]
            records.append(
                {
                    "kind": "runs",
                    "preset": PRESET,
                    "runs": runs,
                    "threads": threads if accelerator.device.type == "cpu" else None,
                    "images_per_s": spread([sum(each) for each in rates]),
                    "images_per_s_of_each": spread([rate for each in rates for rate in each]),
                }
            )
    return records


def _window(processes: list[Process]) -> list[float]:
    """Images/s of each over one window."""
    for process in processes:
        tell(process)
    rates = [float(line(process)) for process in processes]
    for process in processes:  # all have been watched: they may rest
        tell(process)
    for process in processes:
        expect(process, READY)
    return rates


def train(settings: Settings, threads: int) -> None:
    """One of the runs: it follows what its standard input says, until that is closed."""
    accelerator = launch.start_accelerator()
    torch.set_num_threads(threads)
    config = replace(PRESETS[PRESET](), batch_size=settings.batch_size, compile=settings.compiled)
    assert settings.data is not None
    trainer = make_trainer(config, accelerator, open_dataset(Path(settings.data)))
    with closing(endless(trainer.loader)) as batches:
        _steps(trainer, batches, WARMUP)
        answer(READY)
        while sys.stdin.readline():
            answer(str(_watched(trainer, batches, settings)))
            rest = threading.Thread(target=sys.stdin.readline, daemon=True)
            rest.start()
            while rest.is_alive():
                _steps(trainer, batches, 1)
            answer(READY)


def _watched(trainer: Trainer, batches: Iterator[Batch], settings: Settings) -> float:
    """Images/s over a window, in whole steps."""
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < settings.window:
        _steps(trainer, batches, settings.steps)
        steps += settings.steps
    return steps * trainer.plan.batch / passed


def _steps(trainer: Trainer, batches: Iterator[Batch], steps: int) -> None:
    """Steps in a row, done when this returns."""
    for _ in range(steps):
        trainer.update(next(batches))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


def report(records: list[Record], settings: Settings) -> str:
    """A table, a row a number of runs."""
    alone = records[0]["images_per_s"]["median"]
    title = f"{PRESET}, batch {settings.batch_size:,} each, images/s: {CELL}"
    rows = [["runs at once", "threads each", "all together", "each", "all / one alone"]]
    rows += [_row(record, alone) for record in records]
    return f"{title}\n{table(rows)}"


def _row(record: Record, alone: float) -> list[str]:
    threads = "-" if record["threads"] is None else str(record["threads"])
    ratio = f"{record['images_per_s']['median'] / alone:.2f}"
    rates = (record[name] for name in ("images_per_s", "images_per_s_of_each"))
    return [str(record["runs"]), threads, *map(cell, rates), ratio]


def main(order: str) -> None:
    given = json.loads(order)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given["settings"].items()
    }
    train(Settings(**values), given["threads"])


if __name__ == "__main__":
    main(sys.argv[1])
