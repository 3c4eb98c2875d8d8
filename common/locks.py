"""Locks in the output folder: one packer that does everything, or several tasks that share it.

`.lock` is held alone by a packer or a merge, and together by the tasks of one pack. A task also
holds `.task-I.lock`, so that it runs once, and `.plan.lock` while the plan is made or read. All
are advisory locks of the kernel (flock): they end with the process, however that ends.
"""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import DataError

LOCK_NAME = ".lock"
PLAN_LOCK_NAME = ".plan.lock"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold `OUT/.lock` alone; create OUT, and remove it again if it is left empty.

    Raises:
        DataError: another packer holds the lock, or OUT cannot be made.
    """
    path, fresh = out / LOCK_NAME, not out.exists()
    handle = _open(path)
    try:
        _take(handle, path, fcntl.LOCK_EX | fcntl.LOCK_NB, _busy(path))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if fresh and not any(out.iterdir()):
                out.rmdir()
    finally:
        os.close(handle)


@contextmanager
def task_locked(out: Path, index: int) -> Iterator[None]:
    """Hold `OUT/.lock` with other tasks, and `OUT/.task-INDEX.lock` alone.

    Raises:
        DataError: a packer that does everything runs, or this task does already.
    """
    everyone, mine = out / LOCK_NAME, out / f".task-{index}.lock"
    with _closing(_open(everyone)) as shared, _closing(_open(mine)) as alone:
        _take(shared, everyone, fcntl.LOCK_SH | fcntl.LOCK_NB, _busy(everyone))
        twice = f"{mine} is locked: task {index} runs already. Wait for it, or stop it"
        _take(alone, mine, fcntl.LOCK_EX | fcntl.LOCK_NB, twice)
        try:
            yield
        finally:
            mine.unlink(missing_ok=True)


@contextmanager
def plan_locked(out: Path) -> Iterator[None]:
    """Hold `OUT/.plan.lock` alone; wait while another task makes the plan."""
    path = out / PLAN_LOCK_NAME
    with _closing(_open(path)) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for the task that makes the plan", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be used as output folder: {error.strerror}"
        ) from None


def _take(handle: int, path: Path, how: int, busy: str) -> None:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise DataError(busy) from None
    except OSError as error:
        raise DataError(f"{path} cannot be locked: {error.strerror}") from None
    # The holder before us removes the file: a lock on a removed file excludes nobody.
    if not path.exists() or path.stat().st_ino != os.fstat(handle).st_ino:
        raise DataError(busy)


@contextmanager
def _closing(handle: int) -> Iterator[int]:
    try:
        yield handle
    finally:
        os.close(handle)


def _busy(path: Path) -> str:
    return f"{path} is locked: another packer writes to {path.parent}. Wait for it, or stop it"
