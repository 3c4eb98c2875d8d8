"""Read a tar member by member, trusting nothing in it.

Headers are parsed by Python's tarfile, so that a mistake in `tar_writer` is not repeated here.
`Rules` say what a tar may hold: OURS, or, in `shards.foreign.scan`, what other tools write.
"""

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from shards.codec.png import MAX_PNG_BYTES
from shards.codec.tar_writer import BLOCK, padded

MAX_HEADER_BYTES = 1 << 16  # of a pax header or a long name
_CHUNK = 1 << 16
_PAX, _PAX_GLOBAL, _LONG_NAME = tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}


@dataclass(frozen=True)
class Rules:
    """Members that a tar may hold."""

    limits: Mapping[str, int]  # largest body in bytes by suffix; other suffixes are refused
    closing: int  # most bytes of zeros after the last member
    ignored: frozenset[str] = frozenset()  # suffixes of members to skip
    extended: bool = False  # allow pax and GNU headers, and folders
    junk: Callable[[str], bool] | None = None  # whether a member is to be skipped by its name


OURS = Rules({"png": MAX_PNG_BYTES, "cls": MAX_PNG_BYTES}, 2 * tarfile.RECORDSIZE)


class TarError(Exception):
    """A tar that cannot be read further; `offset` is the byte where reading stopped."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


@dataclass(frozen=True)
class Member:
    offset: int  # of its first header, in bytes
    name: str
    data_offset: int  # of its body
    body: bytes


def key_suffix(name: str) -> tuple[str, str]:
    """Split a member's name at its first dot, as WebDataset does: key and lower-case suffix."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def read_members(
    path: Path,
    rules: Rules = OURS,
    digest: xxhash.xxh3_64 | None = None,
) -> Iterator[Member]:
    """Yield the members of a tar in order; one member is held in memory at a time.

    Args:
        digest: updated with every byte of the file, complete at the end.

    Raises:
        TarError: a damaged header, a member that is not a regular file within `rules`, a
            truncated file, or anything but zeros after the end.
    """
    with open(path, "rb", buffering=_CHUNK) as file:
        tar = _Tar(file, path.stat().st_size, rules, digest)
        while (member := tar.next()) is not None:
            yield member
        tar.check_end()


class _Tar:
    """A tar being read; `offset` is that of the next header."""

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        rules: Rules,
        digest: xxhash.xxh3_64 | None,
    ) -> None:
        self._file, self._size, self._rules, self._digest = file, size, rules, digest
        self.offset = 0

    def next(self) -> Member | None:
        """Read the next member that is not ignored; None at the zeros that end the tar."""
        first, name = self.offset, None
        while (info := self._header()) is not None:
            start, self.offset = self.offset, self.offset + BLOCK
            extended = self._rules.extended
            if extended and info.type in (_PAX, _PAX_GLOBAL, _LONG_NAME):
                name = self._long_name(start, info) or name
                continue
            info.name = name or info.name
            member = None if extended and info.isdir() else self._member(first, start, info)
            if member is not None:
                return member
            first, name = self.offset, None
        if first != self.offset:
            raise TarError(first, "the header of a member that does not follow")
        return None

    def check_end(self) -> None:
        """Check that only zeros follow, and not too many."""
        closing = self._size - self.offset
        zeros = 2 * BLOCK <= closing <= self._rules.closing
        for _ in range(BLOCK, closing, _CHUNK) if zeros else ():
            zeros = zeros and not any(self._read(_CHUNK))
        if not zeros:
            raise TarError(self.offset, "the tar does not end here with two blocks of zeros")

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if self._digest is not None:
            self._digest.update(data)
        return data

    def _header(self) -> tarfile.TarInfo | None:
        block = self._read(BLOCK)
        if block == bytes(BLOCK):
            return None
        try:
            # GNU tar cuts a long name within a letter: only the full name must be UTF-8
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            formats = [name for magic, name in _COMPRESSED.items() if block.startswith(magic)]
            if formats and not self.offset:
                reason = f"a {formats[0]} file, expected a plain tar: unpack it first"
            else:
                reason = f"no valid member header ({error})"
            raise TarError(self.offset, reason) from None
        if info.size < 0:
            raise TarError(self.offset, f"{info.name!r} has {info.size} bytes")
        return info

    def _member(self, first: int, start: int, info: tarfile.TarInfo) -> Member | None:
        """Read a regular file; None if it is to be ignored."""
        regular = (tarfile.REGTYPE, tarfile.AREGTYPE) if self._rules.extended else b"0"
        if info.type not in regular:
            kind = f"{info.name!r} is of type {info.type!r}, expected a regular file"
            raise TarError(first, kind)
        if self._rules.junk is not None and self._rules.junk(info.name):
            self._skip(first, info)
            return None
        suffix = key_suffix(info.name)[1]
        if suffix in self._rules.ignored:
            self._skip(first, info)
            return None
        limit = self._rules.limits.get(suffix)
        if limit is None:
            allowed = ", ".join(f".{allowed}" for allowed in sorted(self._rules.limits))
            hint = f" (to skip such members: --ignore {suffix})" if self._rules.extended else ""
            dots = ", and the first dot of a name ends the key" if "." in suffix else ""
            reason = f"{info.name!r} is refused: expected members {allowed}{dots}{hint}"
            raise TarError(first, reason)
        if info.size > limit:
            raise TarError(first, f"{info.name!r} has {info.size} bytes, at most {limit}")
        try:
            info.name.encode()
        except UnicodeEncodeError:
            raise TarError(first, f"the name {info.name!r} is not UTF-8") from None
        return Member(first, info.name, start + BLOCK, self._body(first, info))

    def _body(self, first: int, info: tarfile.TarInfo) -> bytes:
        body = self._read(padded(info.size))
        if len(body) < padded(info.size):
            raise TarError(first, f"{info.name!r} is cut: the file ends at byte {self._size}")
        self.offset += len(body)
        return body[: info.size]

    def _skip(self, first: int, info: tarfile.TarInfo) -> None:
        end = self.offset + padded(info.size)
        if end > self._size:
            raise TarError(first, f"{info.name!r} is cut: the file ends at byte {self._size}")
        while self.offset < end:
            self.offset += len(self._read(min(_CHUNK, end - self.offset)))

    def _long_name(self, start: int, info: tarfile.TarInfo) -> str | None:
        """Read the name in a pax header or GNU long name, if it has one."""
        if info.size > MAX_HEADER_BYTES:
            reason = f"an extended header of {info.size} bytes, at most {MAX_HEADER_BYTES}"
            raise TarError(start, reason)
        body = self._body(start, info)
        if info.type == _LONG_NAME:
            return body.rstrip(b"\0").decode("utf-8", "surrogateescape")
        try:
            records = _pax_records(body)
        except ValueError:
            raise TarError(start, "a damaged pax header") from None
        refused = {"size", "linkpath", "hdrcharset"}
        if info.type == _PAX_GLOBAL:
            refused.add("path")
        for name in records:
            if name in refused or name.startswith("GNU.sparse"):
                raise TarError(start, f"a pax header that sets {name!r} is refused")
        return records.get("path")


def _pax_records(body: bytes) -> dict[str, str]:
    """Parse the records of a pax header, each `LENGTH KEY=VALUE` and a newline."""
    records, at = {}, 0
    while at < len(body):
        length, space, _ = body[at : at + 8].partition(b" ")
        end = at + int(length)
        name, equals, value = body[at + len(length) + 1 : end].partition(b"=")
        if not (length.isdigit() and space and equals and value.endswith(b"\n")) or end > len(body):
            raise ValueError
        records[name.decode("utf-8")] = value[:-1].decode("utf-8", "surrogateescape")
        at = end
    return records
