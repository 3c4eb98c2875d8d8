"""`neighbours`: what a training loses to neighbours on its cores, by how long OpenMP threads spin.

A thread that waits at the end of a parallel region spins for a while before it sleeps. Spinning
saves the time to wake up where the cores are its own, and takes time from others where they are
not. For each spin count, two trainings with a thread per core start and wait. Then one trains
alone, one beside a busy process of the lowest priority per core, and both at once, in turn.
The commands leave the count to libgomp, by this table (bench/LOG.md).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import msgspec
from accelerate import Accelerator

from bench.modes.processes import started
from bench.modes.side_by_side import PRESET, RunSettings, watch_window
from bench.patches import packed_folder
from bench.records import CELL, Record, Spread
from bench.settings import Settings
from bench.timing import log
from common.console import table
from common.errors import DataError
from common.machine import usable_cores

DEFAULT_SPIN = 300_000  # libgomp's own
SPINS = (DEFAULT_SPIN, 100_000, 30_000, 10_000, 3_000, 1_000, 0)
NICE = 19


class Neighbours(Record, tag="neighbours", frozen=True):
    """Images/s at one spin count."""

    spin: int  # GOMP_SPINCOUNT
    alone: Spread
    beside_a_niced_process: Spread
    both: Spread  # of two trainings together


def measure(settings: Settings, accelerator: Accelerator) -> list[Neighbours]:
    """Time each spin count alone and beside neighbours.

    Raises:
        DataError: this machine trains on a GPU.
    """
    if accelerator.device.type != "cpu":
        raise DataError("neighbours is about OpenMP threads: it is measured on a CPU")
    records = []
    with packed_folder(settings) as root:
        told = RunSettings(replace(settings, data=str(root)), usable_cores())
        arguments = [[msgspec.json.encode(told).decode()]] * 2
        for spin in SPINS:
            log.info(f"neighbours: spin count {spin:,}, {settings.repeats} rounds")
            alone, niced, both = [], [], []
            with (
                mock.patch.dict(os.environ, GOMP_SPINCOUNT=str(spin)),
                started("bench.modes.side_by_side", arguments) as processes,
            ):
                for _ in range(settings.repeats):
                    alone += watch_window(processes[:1])
                    with _busy_cores():
                        niced += watch_window(processes[:1])
                    both.append(sum(watch_window(processes)))
            spreads = (Spread.of(rates) for rates in (alone, niced, both))
            records.append(Neighbours(spin, *spreads))
    return records


@contextmanager
def _busy_cores() -> Iterator[None]:
    """Keep a process of the lowest priority busy per core."""
    code = f"import os; os.nice({NICE})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(usable_cores())]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def report(records: list[Neighbours], settings: Settings) -> str:
    """A row per spin count; ratios are to the fastest training alone, of all spin counts."""
    best = max(record.alone.median for record in records)
    rows = [["GOMP_SPINCOUNT", "alone", "alone / best", "both", "both / best", "niced neighbour"]]
    for r in records:
        ratios = [f"{spread.median / best:.2f}" for spread in (r.alone, r.both)]
        cells = [f"{r.alone}", ratios[0], f"{r.both}", ratios[1], f"{r.beside_a_niced_process}"]
        rows.append([f"{r.spin:,}", *cells])
    title = f"{PRESET}, batch {settings.batch_size:,}, {usable_cores()} threads each"
    return f"{title}, images/s: {CELL}\n{table(rows)}"
