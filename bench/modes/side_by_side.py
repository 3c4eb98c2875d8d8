"""`side-by-side`: the throughput of one device when 1, 2 and 4 training runs share it.

Each run is a process of its own: it makes its trainer, warms up, reports that it is ready and
waits. When all are ready, all start at once; each counts the images of its steps until the window
is over, and goes on training until every other is done too, so that none is measured alone. The
total is the sum over runs in the same window. On a CPU the cores are divided evenly.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from bench.modes.processes import READY, Process, answer, expect_ready, read_line, started, tell
from bench.patches import packed_folder
from bench.records import CELL, Record, Spread
from bench.settings import Settings
from bench.steps import WARMUP, endless, make_trainer
from bench.timing import log
from common.console import table
from common.machine import usable_cores
from pipeline.index import open_dataset
from pipeline.loader import Batch
from train import launch
from train.loop import Trainer

PRESET = "dvae"
RUNS = (1, 2, 4)


class Runs(Record, tag="runs", frozen=True):
    """Throughput of a number of runs at once."""

    preset: str
    runs: int
    threads: int | None  # of each run; None on a GPU
    images_per_s: Spread  # of all together
    images_per_s_of_each: Spread


class RunSettings(msgspec.Struct, frozen=True):
    """Settings of the process of one run."""

    settings: Settings
    threads: int


def measure(settings: Settings, accelerator: Accelerator) -> list[Runs]:
    """Time each number of runs at once."""
    records = []
    with packed_folder(settings) as root:
        for runs in RUNS:
            threads = max(1, usable_cores() // runs)
            log.info(f"side by side: {runs} at once, {threads} threads each: starting")
            run_settings = RunSettings(replace(settings, data=str(root)), threads)
            arguments = [[msgspec.json.encode(run_settings).decode()]] * runs
            with started("bench.modes.side_by_side", arguments) as processes:
                log.info(f"side by side: {settings.repeats} windows of {settings.window:g} s")
                rates = [watch_window(processes) for _ in range(settings.repeats)]
            total = Spread.of([sum(window) for window in rates])
            each = Spread.of([rate for window in rates for rate in window])
            cpu = accelerator.device.type == "cpu"
            records.append(Runs(PRESET, runs, threads if cpu else None, total, each))
    return records


def watch_window(processes: list[Process]) -> list[float]:
    """Measure the images/s of each run over one window."""
    tell(processes)
    rates = [float(read_line(process)) for process in processes]
    tell(processes)  # all have been measured: they may pause
    expect_ready(processes)
    return rates


def train(settings: Settings, threads: int) -> None:
    """Train and answer lines on standard input until it is closed; the main program of a run."""
    accelerator = launch.start_accelerator()
    torch.set_num_threads(threads)
    assert settings.data is not None
    dataset, batch = open_dataset(Path(settings.data)), settings.batch_size
    trainer = make_trainer(
        PRESET, accelerator, dataset, batch_size=batch, compile=settings.compiled
    )
    with closing(endless(trainer.loader)) as batches:
        _steps(trainer, batches, WARMUP)
        answer(READY)
        while sys.stdin.readline():
            answer(str(measured_rate(trainer, batches, settings)))
            pause = threading.Thread(target=sys.stdin.readline, daemon=True)
            pause.start()
            while pause.is_alive():
                _steps(trainer, batches, 1)
            answer(READY)


def measured_rate(trainer: Trainer, batches: Iterator[Batch], settings: Settings) -> float:
    """Measure the images/s of whole steps over a window, of `settings.steps` at the least."""
    began, steps, seconds = time.perf_counter(), 0, 0.0
    while not steps or seconds < settings.window:
        _steps(trainer, batches, settings.steps)
        steps += settings.steps
        seconds = time.perf_counter() - began
    return steps * trainer.schedule.batch / seconds


def _steps(trainer: Trainer, batches: Iterator[Batch], steps: int) -> None:
    """Make steps in a row, and wait until the device is done."""
    for _ in range(steps):
        trainer.update(next(batches))
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)


def report(records: list[Runs], settings: Settings) -> str:
    """Show a row per number of runs."""
    alone = records[0].images_per_s.median
    rows = [["runs at once", "threads each", "all together", "each", "all / one alone"]]
    for r in records:
        threads = "-" if r.threads is None else str(r.threads)
        ratio = f"{r.images_per_s.median / alone:.2f}"
        rows.append([str(r.runs), threads, f"{r.images_per_s}", f"{r.images_per_s_of_each}", ratio])
    return f"{PRESET}, batch {settings.batch_size:,} each, images/s: {CELL}\n{table(rows)}"


if __name__ == "__main__":
    received = msgspec.json.decode(sys.argv[1], type=RunSettings)
    train(received.settings, received.threads)
