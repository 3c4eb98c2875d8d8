"""Sweeps on this machine: stage after stage, some runs side by side, told as they go."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.command import DONE, INTERRUPTED, STOPPED, UNUSABLE_DATA
from common.console import clock
from common.machine import usable_core_numbers
from train.sweep.children import Children, Ended, Interruption, Task, places
from train.sweep.runs import PlannedRun, Programs, evaluation, failure, training

TELL_S = 60.0  # between lines of progress

Say = Callable[[str], None]
Stage = Callable[[PlannedRun, Programs], Task | None]


def run_here(planned: list[PlannedRun], jobs: int, programs: Programs, say: Say) -> int:
    """Train what is left, `jobs` runs side by side, then evaluate what is left; the exit status.

    A run that fails is told of at the end, and the others go on.
    """
    with Interruption() as interruption:
        children = Children(places(jobs, usable_core_numbers(), _gpus()), interruption)
        failed: dict[str, str] = {}
        for stage, verb in ((training, "trained"), (evaluation, "evaluated")):
            progress = Progress(planned, stage, programs, interruption, say, verb, failed)
            children.run(progress.tasks, progress.ended, progress.tick)
    done = sum(run.state == "done" for run in planned)
    say(f"{done} of {len(planned)} runs done in {planned[0].out}")
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    if interruption.number is not None:
        say("interrupted; the same command continues")
        return INTERRUPTED if interruption.number == signal.SIGINT else STOPPED
    if failed:
        return UNUSABLE_DATA
    say(f"compare them: python -m eval.report {planned[0].out}/*-s* --out {planned[0].out}/report")
    return DONE


@dataclass
class Progress:
    """One stage of the sweep: what is left of it, and lines on how it goes."""

    planned: list[PlannedRun]
    stage: Stage
    programs: Programs
    interruption: Interruption
    say: Say
    verb: str
    failed: dict[str, str]

    def __post_init__(self) -> None:
        found = {run.name: self.stage(run, self.programs) for run in self.planned}
        self.tasks = [task for task in found.values() if task is not None]
        self.runs = {run.name: run for run in self.planned if found[run.name]}
        self.began = self.told = time.monotonic()
        self.over: set[str] = set()
        self.measured = False  # a run has ended well
        self.before = self._images_seen()

    def ended(self, end: Ended) -> None:
        """Tell how a run ended, and keep its error."""
        run, name = self.runs[end.task.name], end.task.name
        self.over.add(name)
        if self.stage(run, self.programs) is None:
            self.measured, word = True, f"{self.verb} in {clock(end.seconds)}"
        elif self.interruption.number is not None or end.code == STOPPED:
            word = "interrupted"
        else:
            self.failed[name] = failure(run, end.pid)
            word = f"failed: {self.failed[name]}"
        self.say(f"[{len(self.over)}/{len(self.tasks)}] {name}: {word}{self._left()}")

    def tick(self) -> None:
        if time.monotonic() - self.told < TELL_S:
            return
        self.told = time.monotonic()
        going = [run for name, run in self.runs.items() if name not in self.over]
        shares = (f"{r.name} {r.images_seen() / r.images:.0%}" for r in going if r.images_seen())
        self.say(f"  {', '.join(shares) or 'starting'}{self._left()}")

    def _left(self) -> str:
        """The time left at the rate so far, in images; unknown before a first run ended."""
        done = self._images_seen() - self.before
        left = sum(run.images for run in self.runs.values()) - self.before - done
        if self.stage is not training or not self.measured or done <= 0 or left <= 0:
            return ""
        return f"; about {clock((time.monotonic() - self.began) * left / done)} left"

    def _images_seen(self) -> int:
        return sum(min(run.images, run.images_seen()) for run in self.runs.values())


def _gpus() -> list[str]:
    """The devices that torch sees, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(index) for index in range(count)])[:count]
