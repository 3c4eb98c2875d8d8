"""Commands in processes of their own, some side by side; interruptions are passed on to them."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple

POLL_S = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Task(NamedTuple):
    name: str
    command: tuple[str, ...]
    log: Path  # what it prints is appended there


class Ended(NamedTuple):
    task: Task
    pid: int
    code: int  # as of `subprocess.Popen.returncode`
    seconds: float


class Place(NamedTuple):
    """Where one of the processes side by side runs."""

    cores: frozenset[int]  # empty: all
    environment: Mapping[str, str] = {}


ANYWHERE = Place(frozenset())


def places(jobs: int, cores: Iterable[int], gpus: list[str]) -> list[Place]:
    """Cores divided evenly among jobs, so that training takes as many threads; GPUs in turn."""
    every = sorted(cores)
    found = []
    for job in range(jobs):
        share = every[len(every) * job // jobs : len(every) * (job + 1) // jobs]
        share = share or every[job % len(every) :][:1]
        device = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if len(gpus) > 1 else {}
        found.append(Place(frozenset(share) if jobs > 1 else ANYWHERE.cores, device))
    return found


class Interruption:
    """The first signal that asks to stop, and whether Ctrl-C was pressed again. A context."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.hurried = False

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.hurried = self.hurried or (self.number is not None and number == signal.SIGINT)
        self.number = self.number or number


@dataclass
class Children:
    """Runs tasks, one in each place at a time.

    Each child is in a session of its own: it gets a signal once, from here, and not a second time
    from the terminal. An interruption sends them SIGTERM, upon which training saves and ends; a
    second Ctrl-C sends SIGINT, upon which it does not wait.
    """

    places: list[Place]
    interruption: Interruption
    running: dict[int, tuple[Task, subprocess.Popen[bytes], float]] = field(default_factory=dict)

    def run(
        self, tasks: Iterable[Task], ended: Callable[[Ended], None], tick: Callable[[], None]
    ) -> None:
        """Start `tasks` in order; returns when all have ended, or after an interruption when
        those that ran have. `tick` is called between looks at them."""
        waiting, told = deque(tasks), 0
        try:
            while self.running or (waiting and self.interruption.number is None):
                told = self._tell(told)
                self._start(waiting)
                tick()
                time.sleep(POLL_S)
                for each in list(self._collect()):
                    ended(each)
        finally:  # nothing is left behind, whatever went wrong here
            self._signal(signal.SIGTERM)
            for _, process, _ in self.running.values():
                process.wait()

    def _tell(self, told: int) -> int:
        """Pass an interruption on; `told` and the result are how urgently the children know."""
        asked = (self.interruption.number is not None) + self.interruption.hurried
        if asked > told:
            self._signal(signal.SIGTERM if asked == 1 else signal.SIGINT)
        return asked

    def _start(self, waiting: deque[Task]) -> None:
        for index, place in enumerate(self.places):
            if index not in self.running and waiting and self.interruption.number is None:
                task = waiting.popleft()
                self.running[index] = (task, start(task, place), time.monotonic())

    def _collect(self) -> Iterator[Ended]:
        for index, (task, process, began) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[index]
                yield Ended(task, process.pid, process.returncode, time.monotonic() - began)

    def _signal(self, number: int) -> None:
        for _, process, _ in self.running.values():
            process.send_signal(number)


def start(task: Task, place: Place = ANYWHERE) -> subprocess.Popen[bytes]:
    """Start a task; it sees the cores of its place alone."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with open(task.log, "ab") as log, _on(place.cores):
        return subprocess.Popen(
            task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, **place.environment}, start_new_session=True,
        )  # fmt: skip


@contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
    """This thread on some cores, which a process that is started inside inherits."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
