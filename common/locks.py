"""Advisory locks of the kernel (flock), which end with the process, however that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.console import log
from common.errors import DataError


@contextmanager
def locked(
    path: Path, busy: str, *, shared: bool = False, wait: bool = False, remove: bool = False
) -> Iterator[None]:
    """Hold the lock file `path`, which is created, with its folder, if it does not exist.

    Args:
        busy: message if another process holds the lock.
        shared: allow other shared holders, but no exclusive one.
        wait: log `busy` and wait, instead of raising.
        remove: remove the file at the end.

    Raises:
        DataError: another process holds the lock and `wait` is off, or the folder is unusable.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"{path.parent} cannot be used: {error.strerror}") from None
        try:
            if _acquire(handle, path, kind, busy, wait):
                try:
                    yield
                finally:
                    if remove:
                        path.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)


def _acquire(handle: int, path: Path, kind: int, busy: str, wait: bool) -> bool:
    """Lock an open file; False if the holder before this one has removed it at its end.

    A lock on a removed file excludes nobody: the file must be made again.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise DataError(busy) from None
        log.info(busy)
        fcntl.flock(handle, kind)
    except OSError as error:
        raise DataError(f"{path} cannot be locked: {error.strerror}") from None
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
