"""Read source image, position, patient and site from the names of a patch's file and slide."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache

from common.errors import DataError
from shards.sources.source import Patch

_POSITIONS = (
    re.compile(r"(?:^|_)y(?P<y>\d{1,9})_x(?P<x>\d{1,9})(?!\d)"),
    re.compile(r"(?:^|_)x(?P<x>\d{1,9})_y(?P<y>\d{1,9})(?!\d)"),
)
_ONLY_POSITION = re.compile(r"(?:\d+_)?x\d{1,9}_y\d{1,9}\.[^.]*")
_TCGA = re.compile(r"(?<![A-Za-z0-9])TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}(?![A-Za-z0-9])")


def require_utf8(path: str) -> None:
    """Refuse a name that no sidecar or `dataset.json` could hold.

    Raises:
        DataError: a name in `path` is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it") from None


def position(stem: str) -> tuple[int | None, int | None]:
    """Return pixel row and column from `..._y0032_x0064` or `..._x0064_y0032`, or (None, None)."""
    if "_x" not in stem and "_y" not in stem:
        return None, None  # without a search: most names have no position
    for pattern in _POSITIONS:
        match = pattern.search(stem)
        if match is not None:
            return int(match["y"]), int(match["x"])
    return None, None


def only_position(name: str) -> bool:
    """Whether a file's name is only a position, as in a folder of one slide: `x1234_y5678.png`, or
    `000123_x1234_y5678.png` as TRIDENT and similar tools write it."""
    return _ONLY_POSITION.fullmatch(name) is not None


@lru_cache(maxsize=1 << 16)
def barcode(name: str) -> tuple[str, str] | None:
    """Return patient and site from a name that holds a TCGA barcode (`TCGA-A6-2671-01Z-00-DX1...`):
    its first 12 characters, and the tissue source site code at characters 6 and 7."""
    match = _TCGA.search(name)
    return None if match is None else (match[0], match[1])


def barcode_notes(
    patches: Sequence[Patch], fields: Sequence[str] = ("patient", "site")
) -> list[str]:
    """Return a line on the `fields` that come from TCGA barcodes, if any patch has a barcode."""
    coded = [patch for patch in patches if fields and barcode(patch.slide or patch.source)]
    if not coded:
        return []
    counts = [f"{field}s: {len({getattr(p, field) for p in coded}):,}" for field in fields]
    return [f"TCGA barcodes in the names of {len(coded):,} patches ({', '.join(counts)})"]


def group_pattern(regex: str | None) -> re.Pattern[str] | None:
    """Compile `--group-regex`.

    Raises:
        DataError: not a regular expression, or one without a group.
    """
    if regex is None:
        return None
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise DataError(f"--group-regex {regex!r} is not valid: {error}") from None
    if not pattern.groups:
        raise DataError(f"--group-regex {regex!r} has no group: put (...) around the source image")
    return pattern


def source_image(path: str, stem: str, slide: str | None, pattern: re.Pattern[str] | None) -> str:
    """Return the source image of a patch.

    It is the first group of `pattern`, searched in the relative path. Without a pattern it is the
    slide, where known, else the file name before `__`, or all of the name.

    Raises:
        DataError: the pattern does not match, or its group is empty.
    """
    if pattern is None:
        return slide or stem.split("__", 1)[0] or stem
    match = pattern.search(path)
    if match is None or not match.group(1):
        what = "does not match" if match is None else "captures nothing in"
        raise DataError(
            f"--group-regex {pattern.pattern!r} {what} {path!r}: "
            f"its first group must give the source image of every file"
        )
    return match.group(1)
