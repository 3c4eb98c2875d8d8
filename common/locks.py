"""Locks between processes: advisory ones of the kernel (flock), and their holder by name.

The kernel ends a lock with its process, however that ends. Some network file systems know no flock,
do not tell other machines of it, or keep it for a machine that is gone: there the holder of `held`
is known by a counter in the lock file, which it raises every BEAT_S.
"""

import errno
import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from common.console import log
from common.errors import DataError
from common.files import make_folder, writing

LOCK = ".lock"  # of a run, a sweep, or a folder of results
BEAT_S = 5.0
STALE_S = 30.0  # a holder on another machine whose counter stands still for so long has ended
SETTLE_S = 2.0  # after which the last of several that took a lock without flock is seen by all
NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
MAX_BYTES = 4096
LOST = 1  # exit status


class Holder(msgspec.Struct, frozen=True):
    """The content of a lock file of `held`."""

    host: str
    pid: int
    boot: str  # the machine since it was started: names of hosts repeat
    token: str  # of this lock alone: process ids repeat
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def held(folder: Path, work: str) -> Iterator[None]:
    """Hold `FOLDER/.lock` for all that writes to a folder; create the folder if need be.

    Not for processes that are started inside: the lock is of this process.

    Args:
        work: what a holder does, such as "writes to it", for the message.

    Raises:
        DataError: another process holds it, here or on another machine, or the folder is unusable.
    """
    path = folder / LOCK
    own = Holder(socket.gethostname(), os.getpid(), _boot(), secrets.token_hex(8))
    while (handle := _taken(path, own, work)) is None:
        continue  # a holder that ended meanwhile has removed the file
    try:
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(handle, path, own, stop), daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            if (last := _read(path)) and last.token == own.token:
                with suppress(OSError):  # a file that stays locks nobody out
                    path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _taken(path: Path, own: Holder, work: str) -> int | None:
    """Open the file and take the lock; None if the file was removed meanwhile."""
    handle, is_taken = _open(path), False
    try:
        with writing(path):
            is_taken = _take(handle, path, own, work)
    finally:
        if not is_taken:
            os.close(handle)
    return handle if is_taken else None


def _take(handle: int, path: Path, own: Holder, work: str) -> bool:
    """Write the new holder to the file once no other one lives; False if it was removed."""
    has_flock = True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(path)
        if holder is None or holder.boot == own.boot:
            raise _busy(path, work, holder) from None
        # a file server may hold the lock for a machine that is gone
        _wait_for_end(path, holder, work)
        if _is_file(handle, path):
            path.unlink(missing_ok=True)
        return False
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise DataError(f"{path} cannot be locked: {error.strerror}") from None
        has_flock = False
    if not _is_file(handle, path):
        return False
    before = _read(path)
    if has_flock and (before is None or before.boot == own.boot):
        _write(handle, own)
        return True
    if before:
        _wait_for_end(path, before, work)
        if not _is_file(handle, path):
            return False
    _write(handle, own)
    time.sleep(SETTLE_S)
    now = _read(path)
    if now is None or now.token != own.token:
        raise _busy(path, work, now)
    return True


def _wait_for_end(path: Path, before: Holder, work: str) -> None:
    """Watch the counter of a holder whose end this machine cannot see.

    Raises:
        DataError: the holder lives.
    """
    log.info(f"{path} is of {before}: waiting up to {STALE_S:.0f} s to see whether it lives")
    deadline = time.monotonic() + STALE_S
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S, STALE_S) / 5)
        if not path.exists():
            return
        now = _read(path)
        if now != before:
            raise _busy(path, work, now or before)
    log.info(f"{before} has ended without removing {path}")


def _beat(handle: int, path: Path, own: Holder, stop: threading.Event) -> None:
    """Raise the counter until `stop`; end the process if another one took the lock.

    That happens to a process that was suspended for longer than STALE_S.
    """
    beat = 0
    while not stop.wait(BEAT_S):
        with suppress(OSError):  # a file system that does not answer for a while
            now = _read(path)
            if now and now.token != own.token:
                print(f"error: {path} was taken over by {now}", file=sys.stderr, flush=True)
                os._exit(LOST)
            beat += 1
            _write(handle, msgspec.structs.replace(own, beat=beat))


def _read(path: Path) -> Holder | None:
    """Read the holder; None where the file is missing, empty, or just being written."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _write(handle: int, holder: Holder) -> None:
    """Write in place: a lock is on the file, not on its name."""
    content = msgspec.json.encode(holder)
    os.pwrite(handle, content, 0)
    os.ftruncate(handle, len(content))
    os.fsync(handle)


def _busy(path: Path, work: str, holder: Holder | None) -> DataError:
    name = str(holder) if holder else "another process"
    return DataError(
        f"{path} is locked: {name} {work}. Wait for it, or stop it. One that has died on another "
        f"machine holds nobody up for longer than {STALE_S:.0f} s"
    )


def _is_file(handle: int, path: Path) -> bool:
    """Return whether the file is still the one of that name: removed, it locks nobody out."""
    with suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(handle))
    return False


def _boot() -> str:
    """Identify this machine since its start."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


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
        handle = _open(path)
        try:
            if _acquire(handle, path, kind, busy, wait):
                try:
                    yield
                finally:
                    if remove:
                        with suppress(OSError):  # a file that stays locks nobody out
                            path.unlink(missing_ok=True)
                return
        finally:
            os.close(handle)


def _open(path: Path) -> int:
    try:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be used: {error.strerror}") from None


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
    return _is_file(handle, path)
