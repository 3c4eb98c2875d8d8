"""A scratch file in which the patches of images wait until their shard is built.

The rows of a patch, or the reason why it has none, lie at the offset that its key gives. Their
first byte says which: a hole in the file is neither.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.codec.png import RAW_BYTES, PngError
from shards.sources.source import Patch, ReadPatch

_FILTER = b"\0"  # of the first row
_GOOD, _BAD = b"\x01", b"\xff"  # in its place


def write_rows(handle: int, key: int, rows: bytes | memoryview) -> None:
    """Write the rows of a patch (RAW_BYTES), as `png.inflate` gives them."""
    if os.pwritev(handle, (_GOOD, rows[1:]), key * RAW_BYTES) < RAW_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_reason(handle: int, key: int, reason: str) -> None:
    """Write why a patch has no rows."""
    os.pwrite(handle, _BAD + reason.encode()[: RAW_BYTES - 2] + b"\0", key * RAW_BYTES)


@contextmanager
def open_staged(path: Path) -> Iterator[ReadPatch]:
    """Open the file for reading; see `Source.open`."""
    handle = os.open(path, os.O_RDONLY)

    def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
        raw = os.pread(handle, RAW_BYTES, key * RAW_BYTES)
        if raw.startswith(_GOOD) and len(raw) == RAW_BYTES:
            return patch, b"", _FILTER + raw[1:]
        reason = raw[1:].split(b"\0")[0].decode("utf-8", "replace")
        raise PngError(reason if raw.startswith(_BAD) else "was not staged")

    try:
        yield read
    finally:
        os.close(handle)
