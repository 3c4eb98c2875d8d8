"""Locks in the output folder: one packer that does everything, or several tasks that share it.

`.lock` is held exclusively by a packer or a merge, and shared by the tasks of one pack. A task also
holds `.task-I.lock`, so that it runs once, and `.plan.lock` while the plan is made or read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.locks import locked

LOCK_NAME = ".lock"
PLAN_LOCK_NAME = ".plan.lock"


@contextmanager
def packer_lock(out: Path) -> Iterator[None]:
    """Hold `OUT/.lock` exclusively; create OUT, and remove it again if it is left empty.

    Raises:
        DataError: another packer holds the lock, or OUT cannot be made.
    """
    fresh = not out.exists()
    with locked(out / LOCK_NAME, _busy(out), remove=True):
        try:
            yield
        finally:
            if fresh and [entry.name for entry in out.iterdir()] == [LOCK_NAME]:
                (out / LOCK_NAME).unlink()
                out.rmdir()


@contextmanager
def task_lock(out: Path, index: int) -> Iterator[None]:
    """Share `OUT/.lock` with other tasks, and hold `OUT/.task-INDEX.lock` exclusively.

    Raises:
        DataError: a packer that does everything runs, or this task does already.
    """
    own = out / f".task-{index}.lock"
    running = f"{own} is locked: task {index} runs already. Wait for it, or stop it"
    with locked(out / LOCK_NAME, _busy(out), shared=True), locked(own, running, remove=True):
        yield


@contextmanager
def plan_lock(out: Path) -> Iterator[None]:
    """Hold `OUT/.plan.lock` exclusively; wait while another task makes the plan."""
    with locked(out / PLAN_LOCK_NAME, "waiting for the task that makes the plan", wait=True):
        yield


def _busy(out: Path) -> str:
    path = out / LOCK_NAME
    return f"{path} is locked: another packer writes to {out}. Wait for it, or stop it"
