"""Brings one file here: continued where it was cut, verified, then renamed."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import xxhash

from common.errors import DataError
from shards.remote.store import Store

ATTEMPTS = 5  # of a file
PAUSE = 0.5  # seconds before the second attempt; doubled before each further one
_CHUNK = 4 << 20
_HASH_CHUNK = 1 << 20
_TRY_AGAIN = (408, 425, 429)  # of the 4xx answers, which are otherwise final

T = TypeVar("T")


class StoppedError(Exception):
    """Another file failed, or the command was interrupted."""


@dataclass(frozen=True)
class Wanted:
    """A file of a data set."""

    name: str  # in the store
    target: Path
    size: int
    xxh3: str

    @property
    def part(self) -> Path:
        """What has arrived of it."""
        return self.target.with_name(f".{self.target.name}.part")

    def there(self) -> bool:
        """Files get their names once they are verified."""
        return self.target.is_file() and self.target.stat().st_size == self.size

    def begun(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def read_small(store: Store, name: str, most: int) -> bytes:
    """A file of at most `most` bytes.

    Raises:
        DataError: it is not there, or larger, or the connection does not last.
    """
    place = f"{store.url}/{name}"

    def read() -> bytes:
        parts, size = [], 0
        with store.open(name, 0)[0] as file:
            while data := file.read(_CHUNK):
                parts.append(data)
                size += len(data)
                if size > most:
                    raise DataError(f"{place} is larger than {most} bytes: not what it should be")
        return b"".join(parts)

    return _insist(place, read)


def download(
    store: Store, wanted: Wanted, received: Callable[[int], None], stop: threading.Event
) -> None:
    """Bring `wanted` to its target; `received` is told of bytes, less than 0 of ones thrown away.

    Raises:
        DataError: not there, not what it should be, a connection that does not last, a full disk.
        StoppedError: `stop` was set; what has arrived stays.
    """
    received(wanted.begun())
    attempt = partial(_attempt, store, wanted, received, stop)
    _insist(f"{store.url}/{wanted.name}", attempt, stop.wait)
    wanted.part.rename(wanted.target)


def _attempt(
    store: Store, wanted: Wanted, received: Callable[[int], None], stop: threading.Event
) -> None:
    """Have the whole file in `wanted.part`, and verify it; raises when it is not there after."""
    begun = wanted.begun()
    if begun < wanted.size:
        _pull(store, wanted, received, stop)
    if (size := wanted.begun()) < wanted.size:
        raise EOFError(f"it ended after {size} of {wanted.size} bytes")
    if size == wanted.size and _hash(wanted.part) == wanted.xxh3:
        return
    received(-size)
    wanted.part.unlink()
    if begun:
        raise ValueError("what had arrived before was of another file")
    raise DataError(
        f"{store.url}/{wanted.name} is not the file that dataset.json lists: its hash differs. "
        f"Copy the data set there again, as a whole"
    )


def _pull(
    store: Store, wanted: Wanted, received: Callable[[int], None], stop: threading.Event
) -> None:
    """Append what is missing, as far as it comes."""
    begun = wanted.begun()
    remote, at = store.open(wanted.name, begun)
    with remote, _appending(wanted.part, at) as write:
        received(at - begun)
        while at < wanted.size and (data := remote.read(min(_CHUNK, wanted.size - at))):
            if stop.is_set():
                raise StoppedError
            write(data)
            at += len(data)
            received(len(data))


@contextmanager
def _appending(path: Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """A function that appends to the first `size` bytes of a file.

    Raises:
        DataError: for errors of this machine, which are not to be taken for the store's.
    """
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115
        file.truncate(size)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None

    def write(data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}. Make room, or choose another cache "
                f"folder, and run the same command again: it continues"
            ) from None

    with file:
        yield write
        os.fsync(file.fileno())


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _insist(what: str, act: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
    """Do `act`, again after a pause while it fails for a reason that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except (DataError, StoppedError):
            raise
        except FileNotFoundError:
            raise DataError(f"{what} does not exist; is the URL that of a data set?") from None
        except Exception as error:  # every library raises kinds of its own
            status = getattr(error, "status", 0)
            reason = f"{type(error).__name__}: {error}"
            final = isinstance(error, PermissionError) or (
                400 <= status < 500 and status not in _TRY_AGAIN
            )
        if final:
            raise DataError(f"{what} cannot be read: {reason}")
        if attempt + 1 < ATTEMPTS:
            wait(PAUSE * 2**attempt)
    raise DataError(
        f"{what} cannot be read, in {ATTEMPTS} attempts: {reason}. What has arrived is kept: the "
        "same command continues"
    )
