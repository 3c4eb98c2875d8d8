"""Download one file from a remote folder: continued where it was cut, verified, then renamed.

Remote folders are opened through fsspec, by the schemes in SCHEMES only and never by a shell.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.core import url_to_fs

from common.errors import DataError
from common.files import hash_file

# the library that fsspec needs for each scheme; the extra `remote` installs them all
SCHEMES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}
ATTEMPTS = 5  # per file
PAUSE = 0.5  # seconds before the second attempt; doubled before each further one

_CONNECT_S, _SILENCE_S = 30, 60  # until a connection counts as lost
_CHUNK = 4 << 20
_TRY_AGAIN = (408, 425, 429)  # of the 4xx answers, which are otherwise final

T = TypeVar("T")


class StoppedError(Exception):
    """Another file failed, or the command was interrupted."""


class Store:
    """A remote folder, for use by several threads.

    Raises:
        DataError: another scheme, a chain of schemes, or a library that is not installed.
    """

    def __init__(self, url: str) -> None:
        scheme, _, path = url.partition("://")
        if scheme not in SCHEMES or "::" in url or not path.strip("/"):
            raise DataError(
                f"{url!r} is refused: a remote data set is named by "
                f"{', '.join(f'{name}://' for name in SCHEMES)} and its folder, and nothing else"
            )
        self.url, self._http = url.rstrip("/"), scheme in ("http", "https")
        try:
            # a new instance: fsspec's shared ones remember what they listed before
            options = {}
            if self._http:
                from aiohttp import ClientTimeout

                # of the wait for the next bytes, not of a whole file
                wait = ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
                options["client_kwargs"] = {"timeout": wait}
            self._files, base = url_to_fs(self.url, skip_instance_cache=True, **options)
        except ImportError as error:
            raise DataError(
                f"{scheme}:// needs {SCHEMES[scheme]} ({error}): pip install 'eqdvae[remote]'"
            ) from None
        self._base = base.rstrip("/")

    @contextmanager
    def open(self, name: str, start: int) -> Iterator[tuple[Any, int]]:
        """Open a file for reading; yield it and the byte it is at.

        That is `start`, or 0 where the server supports no ranges.

        Raises:
            FileNotFoundError: there is no such file; other errors are those of the library.
        """
        path = f"{self._base}/{name}"
        if not self._http:
            with self._files.open(path, "rb", cache_type="none") as file:
                file.seek(start)
                yield file, start
            return
        # streamed: blocks would be a request each; size=1 only saves the request for the size
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with self._files.open(path, block_size=0, size=1, headers=headers) as file:
            yield file, start if file.r.status == 206 else 0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: its name in the store, its path here, and its size and hash."""

    name: str
    target: Path
    size: int
    xxh3: str

    @property
    def partial(self) -> Path:
        """File of the bytes that have arrived."""
        return self.target.with_name(f".{self.target.name}.part")

    def complete(self) -> bool:
        """Whether the file is here; files get their names once they are verified."""
        return self.target.is_file() and self.target.stat().st_size == self.size

    def arrived(self) -> int:
        """Number of bytes that have arrived."""
        return self.partial.stat().st_size if self.partial.is_file() else 0


def read_small(store: Store, name: str, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        DataError: it does not exist, is larger, or the connection does not last.
    """
    place = f"{store.url}/{name}"

    def read() -> bytes:
        pieces, size = [], 0
        with store.open(name, 0) as (file, _):
            while data := file.read(_CHUNK):
                pieces.append(data)
                size += len(data)
                if size > limit:
                    raise DataError(f"{place} is larger than {limit} bytes: not what it should be")
        return b"".join(pieces)

    return _retry(place, read)


def download(
    store: Store, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event
) -> None:
    """Download and verify `file`.

    Args:
        advance: called with the number of bytes that arrived, negative for discarded ones.
        stop: set by another thread to end the download.

    Raises:
        DataError: not there, other content, a connection that does not last, a full disk.
        StoppedError: `stop` was set; the bytes that have arrived stay.
    """
    advance(file.arrived())
    attempt = partial(_attempt, store, file, advance, stop)
    _retry(f"{store.url}/{file.name}", attempt, stop.wait)
    file.partial.rename(file.target)


def _attempt(
    store: Store, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event
) -> None:
    """Append what is missing to `file.partial`, as far as it arrives, and verify it, or raise."""
    before = file.arrived()
    if before < file.size:
        with store.open(file.name, before) as (remote, at), _appending(file.partial, at) as write:
            advance(at - before)
            while at < file.size and (data := remote.read(min(_CHUNK, file.size - at))):
                if stop.is_set():
                    raise StoppedError
                write(data)
                at += len(data)
                advance(len(data))
    if (size := file.arrived()) < file.size:
        raise EOFError(f"it ended after {size} of {file.size} bytes")
    if size == file.size and hash_file(file.partial) == file.xxh3:
        return
    advance(-size)
    file.partial.unlink()
    if before:
        raise ValueError("what had arrived before was of another file")
    raise DataError(
        f"{store.url}/{file.name} is not the file that dataset.json lists: its hash differs. "
        f"Copy the data set there again, as a whole"
    )


@contextmanager
def _appending(path: Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends to the first `size` bytes of a file.

    Raises:
        DataError: a local error, which `_retry` must not take for one of the store.
    """
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115
        file.truncate(size)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None

    def write(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            raise DataError(
                f"{path} cannot be written: {error.strerror}. Make room, or choose another cache "
                f"folder, and run the same command again: it continues"
            ) from None

    with file:
        yield write
        os.fsync(file.fileno())


def _retry(place: str, act: Callable[[], T], wait: Callable[[float], object] = time.sleep) -> T:
    """Call `act`, and again after a pause while it fails for a reason that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except (DataError, StoppedError):
            raise
        except FileNotFoundError:
            raise DataError(f"{place} does not exist; is the URL that of a data set?") from None
        except Exception as error:  # every library raises its own kinds
            status = getattr(error, "status", 0)
            reason = f"{type(error).__name__}: {error}"
            final = isinstance(error, PermissionError) or (
                400 <= status < 500 and status not in _TRY_AGAIN
            )
        if final:
            raise DataError(f"{place} cannot be read: {reason}")
        if attempt + 1 < ATTEMPTS:
            wait(PAUSE * 2**attempt)
    raise DataError(
        f"{place} cannot be read, in {ATTEMPTS} attempts: {reason}. What has arrived is kept: the "
        "same command continues"
    )
