"""Looks at files that were listed: how long and how old each is, and what its name says."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from shards.sources.layout import Accepted, check_link, refusal, refused_name
from shards.sources.names import barcode, group_pattern, position, source_image
from shards.sources.patch import Patch

CHUNK = 1024  # files a `Look`


@dataclass(frozen=True)
class Look:
    """Files to be looked at, and what is known of them without their names."""

    root: str
    accepted: Accepted
    regex: str | None  # see `names.source_image`
    paths: list[str]  # relative to the root, with /
    given: dict[str, list[Any]]  # by field of a patch, a value a path; the names do not say it then

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Looked:
    """What became of the paths of a `Look`."""

    patches: list[Patch]  # in the order of the paths
    refused: list[tuple[str, str]]  # path and reason
    missing: list[tuple[int, str]]  # place in the list and reason
    error: tuple[int, str] | None  # place of the first that no list may hold, and why


def in_parts(
    root: Path, accepted: Accepted, regex: str | None, paths: list[str],
    given: dict[str, list[Any]],
) -> list[Look]:  # fmt: skip
    """A `Look` for every CHUNK of the paths."""
    return [
        Look(str(root), accepted, regex, paths[part], {n: v[part] for n, v in given.items()})
        for part in (slice(start, start + CHUNK) for start in range(0, len(paths), CHUNK))
    ]


LookAll = Callable[[Sequence[Look]], Iterable[Looked]]  # in their order


def look(part: Look) -> Looked:
    """Patches of the files of `part`: what is not given comes from the name, patient and site from
    a TCGA barcode in the slide or source."""
    root, accepted, given = part.root, part.accepted, part.given
    empty = [None] * len(part)
    columns = [given.get(name, empty) for name in ("label", "slide", "patient", "site")]
    columns += [given.get(name, empty) for name in ("x", "y", "mpp")]
    named_place = "x" not in given and "y" not in given
    has_patient, has_site = "patient" in given, "site" in given
    pattern = group_pattern(part.regex)
    status_of = _Statuses(root)
    patches: list[Patch] = []
    refused: list[tuple[str, str]] = []
    missing: list[tuple[int, str]] = []
    rows = zip(part.paths, given["split"], *columns, strict=True)
    for i, (path, split, label, slide, patient, site, x, y, mpp) in enumerate(rows):
        stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
        if reason := refused_name(suffix if dot else "", accepted):
            refused.append((path, reason))
            continue
        try:
            status = status_of(path)
            if reason := refusal(status, accepted):
                refused.append((path, reason))
                continue
            source = source_image(path, stem, slide, pattern)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            missing.append((i, getattr(error, "strerror", None) or str(error)))
            continue
        except DataError as error:
            return Looked(patches, refused, missing, (i, str(error)))
        if not (has_patient and has_site) and (known := barcode(slide or source)):
            patient = patient if has_patient else known[0]
            site = site if has_site else known[1]
        if named_place:
            y, x = position(stem)
        patches.append(
            Patch(path, label, split, source, y, x, status.st_size, status.st_mtime_ns,
                  slide, patient, site, mpp)
        )  # fmt: skip
    return Looked(patches, refused, missing, None)


def look_here(parts: Sequence[Look]) -> Iterable[Looked]:
    """One part after the other, in this process."""
    return map(look, parts)


class _Statuses:
    """What the file system says of files; folders and links may not leave the root."""

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
