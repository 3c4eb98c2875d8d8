"""Reads a tar member by member and trusts nothing in it: the counterpart of `ustar` for checks.

Headers are parsed by Python's tarfile, so that a mistake in our writer is not repeated here.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.png import MAX_PNG_BYTES
from shards.ustar import BLOCK, padded

ALLOWED = (".png", ".cls")


class TarError(Exception):
    """A place in a tar from which on it cannot be read; `offset` in bytes."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


@dataclass(frozen=True)
class Member:
    offset: int  # of the header
    name: str
    body: bytes

    @property
    def data_offset(self) -> int:
        return self.offset + BLOCK


def read_members(path: Path) -> Iterator[Member]:
    """The members of a tar in their order; nothing is unpacked, and at most 64 KiB are held.

    Raises:
        TarError: a damaged header, a member that is not a small regular file named `*.png` or
            `*.cls`, a cut, or anything but zeros after the end.
    """
    offset, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        while True:
            header = file.read(BLOCK)
            if header == bytes(BLOCK):
                break
            info = _parse(header, offset)
            body = file.read(padded(info.size))
            if len(body) < padded(info.size):
                raise TarError(offset, f"{info.name!r} is cut: the file ends at byte {size}")
            yield Member(offset, info.name, body[: info.size])
            offset += BLOCK + len(body)
        rest = os.fstat(file.fileno()).st_size - offset
        if rest < 2 * BLOCK or rest > 2 * tarfile.RECORDSIZE or any(file.read()):
            raise TarError(offset, "the tar does not end here with two blocks of zeros")


def _parse(header: bytes, offset: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError(offset, f"no valid member header ({error})") from None
    if info.type != tarfile.REGTYPE:
        raise TarError(offset, f"{info.name!r} is of type {info.type!r}, expected a regular file")
    if not info.name.endswith(ALLOWED):
        raise TarError(offset, f"{info.name!r} is refused: expected members {ALLOWED}")
    if info.size > MAX_PNG_BYTES:
        raise TarError(offset, f"{info.name!r} has {info.size} bytes, at most {MAX_PNG_BYTES}")
    return info
