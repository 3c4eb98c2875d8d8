"""Files compressed by gzip, unpacked within a limit."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.console import progress
from common.errors import DataError
from common.files import writing

_BLOCK = 1 << 20
_MB = 1_000_000


def read_gz(path: Path, limit: int) -> bytes:
    """Unpack a small file into memory.

    Raises:
        DataError: unreadable, damaged, or more than `limit` bytes when unpacked.
    """
    return b"".join(_blocks(path, limit))


@contextmanager
def unpacked(path: Path, target: Path, limit: int) -> Iterator[None]:
    """Unpack a file into `target`, which is removed again when the block ends.

    Raises:
        DataError: as `read_gz`, or the disk is full.
    """
    try:
        with writing(target), open(target, "wb") as file:
            for data in _blocks(path, limit):
                file.write(data)
        yield
    finally:
        target.unlink(missing_ok=True)


def _blocks(path: Path, limit: int) -> Iterator[bytes]:
    """Yield what is in a file, to its end, where the checksum is compared."""
    size = done = 0
    try:
        total = path.stat().st_size // _MB
        with (
            open(path, "rb") as raw,
            gzip.open(raw) as file,
            progress(f"unpacking {path.name}", total, "MB") as advance,
        ):
            while data := file.read(_BLOCK):
                size += len(data)
                if size > limit:
                    raise DataError(
                        f"{path} is more than {limit:,} bytes when it is unpacked, which no file "
                        f"of this set is: download it again"
                    )
                yield data
                advance(raw.tell() // _MB - done)
                done = raw.tell() // _MB
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}; download it again") from None
