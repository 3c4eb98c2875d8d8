"""Select the files that may be patches, and make a patch from each one's name, size and time."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from common.errors import DataError
from shards.codec.png import MAX_SOURCE_BYTES, inflate
from shards.sources.names import barcode, group_pattern, position, source_image
from shards.sources.source import Accepted, BatchPatches, FileBatch, Patch, ReadPatch, read_file

CHUNK = 1024  # files per batch

PLAIN = Accepted(("png",), MAX_SOURCE_BYTES)


class FileSource(Struct, frozen=True, kw_only=True):
    """Files below a root, each a PNG of one patch unless another source converts them."""

    root: Path
    group_regex: str | None = None  # see `names.source_image`
    accepted: Accepted = PLAIN

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.root.resolve().name

    def batches(self, paths: list[str], columns: dict[str, list[Any]]) -> list[FileBatch]:
        """Cut paths, and the values of columns for them, into batches of CHUNK files."""
        return [
            FileBatch(
                root=str(self.root),
                accepted=self.accepted,
                group_regex=self.group_regex,
                paths=paths[start : start + CHUNK],
                columns={name: values[start : start + CHUNK] for name, values in columns.items()},
            )
            for start in range(0, len(paths), CHUNK)
        ]

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> Self:
        return self

    @contextmanager
    def open(self) -> Iterator[ReadPatch]:
        root = str(self.root)

        def read(key: int, patch: Patch) -> tuple[Patch, bytes, bytes]:
            data = read_file(root, patch)
            return patch, data, inflate(data)

        yield read


def look_up(batch: FileBatch) -> BatchPatches:
    """Return the patches of the files of a batch.

    Fields that `columns` lacks come from the file's name; patient and site from a TCGA barcode in
    the slide or source.
    """
    accepted, columns = batch.accepted, batch.columns
    empty = [None] * len(batch.paths)
    values = [columns.get(name, empty) for name in ("label", "slide", "patient", "site")]
    values += [columns.get(name, empty) for name in ("x", "y", "mpp")]
    position_in_name = "x" not in columns and "y" not in columns
    has_patient, has_site = "patient" in columns, "site" in columns
    pattern = group_pattern(batch.group_regex)
    status_of = _Statuses(batch.root)
    patches: list[Patch] = []
    refused: list[tuple[str, str]] = []
    missing: list[tuple[int, str]] = []
    error: tuple[int, str] | None = None
    rows = zip(batch.paths, columns["split"], *values, strict=True)
    for i, (path, split, label, slide, patient, site, x, y, mpp) in enumerate(rows):
        stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
        if reason := refused_name(suffix if dot else "", accepted):
            refused.append((path, reason))
            continue
        try:
            status = status_of(path)
            if reason := refused_status(status, accepted):
                refused.append((path, reason))
                continue
            source = source_image(path, stem, slide, pattern)
        except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
            missing.append((i, getattr(problem, "strerror", None) or str(problem)))
            continue
        except DataError as problem:
            error = i, str(problem)
            break
        if not (has_patient and has_site) and (tcga := barcode(slide or source)):
            patient = patient if has_patient else tcga[0]
            site = site if has_site else tcga[1]
        if position_in_name:
            y, x = position(stem)
        size, time = status.st_size, status.st_mtime_ns
        # positional: keywords cost a tenth of the time of this loop
        patches.append(
            Patch(path, label, split, source, y, x, size, time, slide, patient, site, mpp)
        )
    return BatchPatches(patches=patches, refused=refused, missing=missing, error=error)


def look_up_here(batches: Sequence[FileBatch]) -> Iterable[BatchPatches]:
    """Look up one batch after the other in this process."""
    return map(look_up, batches)


class _Statuses:
    """Read the status of files; raise DataError where a folder or link leaves the root."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._folders: set[str] = set()

    def __call__(self, path: str) -> os.stat_result:
        full, folder = f"{self._root}/{path}", path.rpartition("/")[0]
        status = os.lstat(full)
        if stat.S_ISLNK(status.st_mode) or folder not in self._folders:
            check_link(full, Path(self._root), self._real_root)
            self._folders.add(folder)
            status = Path(full).stat()
        return status


def check_link(path: str, root: Path, real_root: str) -> None:
    """Refuse a path that leads out of the root; one that leads nowhere is not refused here.

    Raises:
        DataError: the target of `path` exists, and lies outside of the root.
    """
    target = os.path.realpath(path)
    if os.path.commonpath([target, real_root]) != real_root and Path(target).exists():
        raise DataError(
            f"{path} is a link to {target}, outside {root}: refused. Copy the files (cp -rL "
            f"follows links), or name the folder they are in"
        )


def refused_name(suffix: str, accepted: Accepted) -> str:
    """Return why a file whose name ends in `.suffix` cannot be a patch, or nothing."""
    if suffix in accepted.suffixes or suffix.lower() in accepted.suffixes:
        return ""
    hint = "; --convert takes it" if suffix.lower() in ("jpg", "jpeg", "tif", "tiff") else ""
    return f"not a {accepted.suffixes[0].upper()} file (.{suffix}){hint}"


def refused_status(status: os.stat_result, accepted: Accepted) -> str:
    """Return why a file cannot be a patch, whatever is in it, or nothing."""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size > accepted.max_bytes:
        return f"{status.st_size} bytes, expected at most {accepted.max_bytes}"
    return ""
