"""What the path of a patch says: the source image it was cut from, and the place in it."""

import re

from shards.schema import DataError

_POSITIONS = (
    re.compile(r"_y(?P<y>\d{1,9})_x(?P<x>\d{1,9})(?!\d)"),
    re.compile(r"_x(?P<x>\d{1,9})_y(?P<y>\d{1,9})(?!\d)"),
)


def position(stem: str) -> tuple[int | None, int | None]:
    """Pixel row and column from `..._y0032_x0064` or `..._x0064_y0032`, if the name has them."""
    for pattern in _POSITIONS:
        match = pattern.search(stem)
        if match is not None:
            return int(match["y"]), int(match["x"])
    return None, None


def group_pattern(regex: str | None) -> re.Pattern[str] | None:
    """The compiled `--group-regex`.

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


def source_image(path: str, stem: str, pattern: re.Pattern[str] | None) -> str:
    """The source image of a patch: the first group of `pattern`, searched in the relative path;
    without a pattern the file name before `__`, or the whole stem.

    Raises:
        DataError: the pattern does not match, or its group is empty.
    """
    if pattern is None:
        return stem.split("__", 1)[0] or stem
    match = pattern.search(path)
    if match is None or not match.group(1):
        what = "does not match" if match is None else "captures nothing in"
        raise DataError(
            f"--group-regex {pattern.pattern!r} {what} {path!r}: "
            f"its first group must give the source image of every file"
        )
    return match.group(1)
