"""Sweeps on this machine: one stage after the other, concurrent runs, progress lines."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

import torch

from common.command import DONE, INTERRUPTED, STOPPED, STOPPING, UNUSABLE_DATA
from common.console import Rate, clock, log
from common.machine import threads_for, usable_core_numbers, usable_cores
from train.sweep.runs import Command, Programs, SweepRun, evaluation, failure, start, training

POLL_S = 0.1
PROGRESS_S = 60.0  # between lines of progress
SIGNALS = (signal.SIGINT, *STOPPING)

Stage = Callable[[SweepRun, Programs], Command | None]


def run_here(runs: list[SweepRun], jobs: int, programs: Programs) -> int:
    """Train, then evaluate what is left, `jobs` runs at a time; return the exit status.

    A run that fails does not stop the others; its error is repeated at the end.
    """
    failures: dict[str, str] = {}
    # the devices that torch sees, as CUDA_VISIBLE_DEVICES names them
    count = torch.cuda.device_count()
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus = (names or [str(number) for number in range(count)])[:count]
    with watch_signals() as interruption:
        pool = ProcessPool(divide(jobs, usable_core_numbers(), gpus), interruption)
        for stage, verb in ((training, "trained"), (evaluation, "evaluated")):
            progress = Progress(runs, stage, programs, interruption, verb, failures)
            pool.run(progress.commands, progress.ended, progress.tick)
    done, out = sum(run.state == "done" for run in runs), runs[0].out
    log.info(f"{done} of {len(runs)} runs done in {out}")
    for name, error in failures.items():
        log.info(f"failed: {name}: {error}")
    if interruption.number is not None:
        log.info("interrupted; the same command continues")
        return INTERRUPTED if interruption.number == signal.SIGINT else STOPPED
    if failures:
        return UNUSABLE_DATA
    log.info(f"compare them: python -m eval.report {out}/*-s* --out {out}/report")
    return DONE


class Slot(NamedTuple):
    """The share of the machine that one of the concurrent processes gets."""

    cores: frozenset[int]  # empty: all
    environment: Mapping[str, str]


def share_of_quota(jobs: int) -> int | None:
    """Return the threads of each job under a quota of CPU time, which each would use up alone.

    None without a quota: each job then uses the cores that `divide` gives it.
    """
    if usable_cores() == len(usable_core_numbers()):
        return None
    return threads_for(None, jobs)


def divide(jobs: int, cores: Iterable[int], gpus: list[str]) -> list[Slot]:
    """Divide the cores evenly among the jobs, and assign the GPUs to them in turn."""
    numbers = sorted(cores)
    slots = []
    for job in range(jobs):
        share = numbers[len(numbers) * job // jobs : len(numbers) * (job + 1) // jobs]
        share = share or [numbers[job % len(numbers)]]
        device = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if len(gpus) > 1 else {}
        slots.append(Slot(frozenset(share if jobs > 1 else ()), device))
    return slots


@dataclass
class Interruption:
    """The first signal that asked to stop, and whether Ctrl-C was pressed after it."""

    number: int | None = None
    is_urgent: bool = False


@contextmanager
def watch_signals() -> Iterator[Interruption]:
    """Record signals that ask to stop, in place of their handlers."""
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.number is None:
            interruption.number = number
        elif number == signal.SIGINT:
            interruption.is_urgent = True

    handlers = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Process(NamedTuple):
    """A running command."""

    run: str
    process: subprocess.Popen[bytes]
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


@dataclass
class ProcessPool:
    """Runs commands, one in each slot at a time.

    An interruption sends the processes SIGTERM, upon which training saves and ends; a second
    Ctrl-C sends SIGINT, upon which it does not wait.
    """

    slots: list[Slot]
    interruption: Interruption
    running: dict[int, Process] = field(default_factory=dict)  # by number of the slot

    def run(
        self,
        commands: Iterable[Command],
        ended: Callable[[Process], None],
        tick: Callable[[], None],
    ) -> None:
        """Start commands in order; return when all started ones have ended.

        After an interruption no further command is started.

        Args:
            ended: called with each process that has ended.
            tick: called every POLL_S.
        """
        waiting, sent = deque(commands), None
        try:
            while self.running or (waiting and self.interruption.number is None):
                if self.interruption.number is not None:
                    stop = signal.SIGINT if self.interruption.is_urgent else signal.SIGTERM
                    if stop != sent:
                        self._signal(stop)
                    sent = stop
                for number, slot in enumerate(self.slots):
                    if number not in self.running and waiting and self.interruption.number is None:
                        command = waiting.popleft()
                        child = start(command, slot.cores, slot.environment)
                        self.running[number] = Process(command.run, child, time.monotonic())
                tick()
                time.sleep(POLL_S)
                for number, process in list(self.running.items()):
                    if process.process.poll() is not None:
                        del self.running[number]
                        ended(process)
        finally:  # no process outlives an error here
            self._signal(signal.SIGTERM)
            for process in self.running.values():
                process.process.wait()

    def _signal(self, number: int) -> None:
        for process in self.running.values():
            process.process.send_signal(number)


@dataclass
class Progress:
    """One stage of the sweep: the commands left of it, and lines about their progress."""

    all_runs: list[SweepRun]
    stage: Stage
    programs: Programs
    interruption: Interruption
    verb: str  # past participle for a run that has completed the stage, such as "trained"
    failures: dict[str, str]  # the error of each run that failed

    def __post_init__(self) -> None:
        stages = [(run, self.stage(run, self.programs)) for run in self.all_runs]
        self.runs = {run.name: run for run, command in stages if command}
        self.commands = [command for _, command in stages if command]
        self.logged = time.monotonic()
        self.over: set[str] = set()
        self.is_measured = False  # a run has ended well
        self.rate = Rate(sum(run.images for run in self.runs.values()), self._images_seen())

    def ended(self, process: Process) -> None:
        """Log how a run ended, and keep its error."""
        name = process.run
        self.over.add(name)
        if self.stage(self.runs[name], self.programs) is None:
            self.is_measured, outcome = True, f"{self.verb} in {clock(process.seconds)}"
        elif self.interruption.number is not None or process.process.returncode == STOPPED:
            outcome = "interrupted"
        else:
            self.failures[name] = failure(self.runs[name], process.process.pid)
            outcome = f"failed: {self.failures[name]}"
        position = f"[{len(self.over)}/{len(self.commands)}]"
        log.info(f"{position} {name}: {outcome}{self._time_left()}")

    def tick(self) -> None:
        """Log how far the runs are, every PROGRESS_S."""
        if time.monotonic() - self.logged < PROGRESS_S:
            return
        self.logged = time.monotonic()
        shares = [
            f"{name} {run.images_seen() / run.images:.0%}"
            for name, run in self.runs.items()
            if name not in self.over and run.images_seen()
        ]
        log.info(f"  {', '.join(shares) or 'starting'}{self._time_left()}")

    def _time_left(self) -> str:
        """Format the time left at the rate so far; empty until a first run has ended."""
        self.rate.add(self._images_seen() - self.rate.done)
        is_known = self.stage is training and self.is_measured and self.rate.per_second > 0
        if not is_known or self.rate.done >= self.rate.total:
            return ""
        return f"; about {clock(self.rate.seconds_left)} left"

    def _images_seen(self) -> int:
        return sum(min(run.images, run.images_seen()) for run in self.runs.values())
