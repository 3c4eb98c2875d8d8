"""A scratch file in which the patches of images wait until their shard is built.

The rows of a patch, or the reason why it has none, lie at the offset that its key gives. Their
first byte says which: a hole in the file is neither. A list beside the file may name what is in it,
so that an interrupted pack does not decode it again. Tasks that share the work write a file each,
`NAME-INDEX`.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from common.errors import DataError
from common.files import write_atomically
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


def done_list(scratch: Path) -> Path:
    """Return the list of what is whole in the file `scratch`."""
    return scratch.with_name(f"{scratch.name}.done")


def read_done(scratch: Path) -> list[str]:
    """Return the names in the list; none where the file or the list is missing or damaged."""
    if not scratch.exists():
        return []
    try:
        return msgspec.json.decode(done_list(scratch).read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError):
        return []


def write_done(handle: int, scratch: Path, names: Sequence[str]) -> None:
    """Write the list, after the file itself, open as `handle`, is on the disk."""
    os.fsync(handle)
    write_atomically(done_list(scratch), msgspec.json.encode(names))


@contextmanager
def open_scratch(scratch: Path) -> Iterator[int]:
    """Open the file for writing, with what is in it; create it where it is missing.

    Raises:
        DataError: in the block, too, where the file cannot be written.
    """
    try:
        handle = os.open(scratch, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield handle
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(
            f"{scratch} cannot be written: {error.strerror}. Patches need {RAW_BYTES} bytes each "
            f"beside the shards until they are packed; make room and run the same command again"
        ) from None


def with_shares(scratch: Path) -> list[Path]:
    """Return the file and, after it, those beside it that are of tasks that share the work."""
    name = scratch.name.partition("-")[0]
    shares = [path for path in scratch.parent.glob(f"{name}*") if path.suffix != ".done"]
    return [scratch, *sorted({*shares} - {scratch})]


@contextmanager
def open_staged(*files: Path) -> Iterator[ReadPatch]:
    """Open files for reading, of which the lists say what is in the second and later ones; see
    `Source.open`."""
    handles = [os.open(file, os.O_RDONLY) for file in files]
    shares = zip(files[1:], handles[1:], strict=True)
    by_path = {name: handle for file, handle in shares for name in read_done(file)}

    def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
        handle = by_path.get(patch.path, handles[0])
        raw = os.pread(handle, RAW_BYTES, key * RAW_BYTES)
        if raw.startswith(_GOOD) and len(raw) == RAW_BYTES:
            return patch, b"", _FILTER + raw[1:]
        reason = raw[1:].split(b"\0")[0].decode("utf-8", "replace")
        raise PngError(reason if raw.startswith(_BAD) else "was not staged")

    try:
        yield read
    finally:
        for handle in handles:
            os.close(handle)
