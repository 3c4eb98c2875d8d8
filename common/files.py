"""Write files completely or not at all, and read JSON within a limit.

A file appears under its name only when all of it is on disk: it is written under a hidden name
beside it, synced and renamed, and the name is synced as well. Objects in JSON files may hold a
checksum of their own content, by which damage shows.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from common.errors import DataError

MAX_JSON_BYTES = 64 << 20
CHECKSUM = "checksum"  # name in an object of the checksum of the rest
_HASH_CHUNK = 1 << 20
_UNFINISHED = re.compile(r"\..+\.\d+\.tmp(\.[^.]+)?")  # the hidden names below


class HashedFile:
    """File being written; `write` also counts and hashes (xxh3-64)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = xxhash.xxh3_64()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def xxh3(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a hidden path with the suffix of `path`, for writers that open files themselves.

    It becomes `path` when the block ends, and is removed if the block raises.

    Raises:
        DataError: the disk is full, or another error of the file system.
    """
    hidden = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with _replacing(path, hidden):
        make_folder(path.parent)
        yield hidden
        with hidden.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[HashedFile]:
    """Yield an open file that becomes `path`, complete and synced, when the block ends.

    Raises:
        DataError: the disk is full, or another error of the file system; nothing is left behind.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _replacing(path, hidden), hidden.open("wb") as file:
        yield HashedFile(file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path, hidden: Path) -> Iterator[None]:
    try:
        with writing(path):
            yield
            hidden.rename(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # of a disk that fails, which is an error already
            hidden.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system inside into one that names `path` and what to do.

    Raises:
        DataError: instead of an OSError, which for a full disk names no file.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}. Make room, or choose another folder, "
            f"and run the same command again: what is finished is kept"
        ) from error


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` so that `path` always holds the old or the new content, whole.

    Raises:
        DataError: as `atomic_path`.
    """
    with atomic_path(path) as hidden:
        hidden.write_bytes(data)


def is_unfinished(path: Path) -> bool:
    """Return whether a file is one that a writer here left behind when it was killed."""
    return _UNFINISHED.fullmatch(path.name) is not None


def remove_unfinished(folder: Path, stem: str = "*") -> None:
    """Remove what killed writers left of files to which no other process writes now.

    Args:
        stem: of the files, as a pattern of `glob`.
    """
    for path in folder.glob(f".{stem}.*.tmp*") if folder.is_dir() else ():
        if is_unfinished(path) and not path.is_dir():
            path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those that hold it, whose names are on disk afterwards."""
    missing = [level for level in (folder, *folder.parents) if not level.is_dir()]
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        sync_folder(level.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # names no file
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """Return the xxh3-64 of a file, as `HashedFile.xxh3`; a part of it is in memory at a time."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_json(content: Mapping[str, object]) -> str:
    """Return the xxh3-64 of the content of a JSON object, not of its layout."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def with_checksum(content: Mapping[str, object]) -> dict[str, object]:
    """Add the checksum of an object to it, for a file that `read_json` reads."""
    as_read = json.loads(json.dumps(content))  # names of fields are strings there
    return {**content, CHECKSUM: hash_json(as_read)}


def without_checksum(content: Mapping[str, Any], place: object) -> dict[str, Any]:
    """Compare the checksum of an object with its content, and leave it out.

    Objects without one pass: files of earlier versions, and those written by hand.

    Args:
        place: path or URL of the file, for the message.

    Raises:
        DataError: the content is not that of the checksum.
    """
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != hash_json(rest):
        raise DataError(
            f"{place} was altered since it was written: its content is not that of its checksum. "
            f"Restore it, or make it again; if you changed it yourself, remove {CHECKSUM!r} from it"
        )
    return rest


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """Read the JSON object in a file, and compare it with its checksum, if it has one.

    Args:
        missing: advice to the user if the file does not exist.

    Raises:
        DataError: the file is missing, too large, not JSON, not an object, or altered.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist" + (f": {missing}" if missing else ""))
    if path.stat().st_size > MAX_JSON_BYTES:
        raise DataError(f"{path} is larger than {MAX_JSON_BYTES} bytes: not a file of this program")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # the latter from thousands of brackets
        raise DataError(f"{path} is not valid JSON ({error}); make it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, expected an object")
    return without_checksum(value, path)
