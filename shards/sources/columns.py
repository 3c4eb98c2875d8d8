"""The columns of a manifest, checked; an error names the row and cell that is wrong."""

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import DataError
from shards.sources.spelling import SpellingHints
from shards.sources.splits import split_name

_NUMBER = r"^\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*$"
_MAX_PIXEL = 999_999_999
_UNTIDY = r"(^|/)(\.?/|\./?$)"  # ./a, a//b, a/./b: another spelling of one path
_NOT_INSIDE = (
    "is not inside SOURCE: expected a path relative to it or an absolute one in it, no '..'"
)
_ABOVE = r"(^|/)\.\.(/|$)"


@dataclass(frozen=True)
class Column:
    """A column of a table, with what an error needs to name a cell."""

    file: Path
    name: str
    first: int  # number of the first row, as a spreadsheet counts
    data: pa.ChunkedArray

    def text(self) -> pa.Array:
        """Return the cells as strings, null where one is empty or NaN.

        Raises:
            DataError: a type that has no text, such as lists and structs.
        """
        data = self.data
        if pa.types.is_floating(data.type):
            data = pc.if_else(pc.is_nan(data), None, data)
            wide = pc.cast(data, pa.float64())
            whole = pc.and_(pc.equal(wide, pc.floor(wide)), pc.less(pc.abs(wide), 2.0**53))
            if pc.all(whole).as_py():  # 100000000000, where floats are written as 1e+11
                data = pc.cast(wide, pa.int64())
        try:
            text = pc.cast(data, pa.string()).combine_chunks()
        except (pa.ArrowException, ValueError) as error:
            raise DataError(
                f"{self.file} column {self.name!r} is not text but {data.type}: {error}"
            ) from None
        return pc.if_else(pc.equal(text, ""), None, text)

    def numbers(self) -> tuple[pa.Array, pa.Array]:
        """Return the cells as float64, null where one is empty, and as text.

        Raises:
            DataError: a cell that is not a number.
        """
        text, kind = self.text(), self.data.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            numbers = pc.cast(self.data, pa.float64(), safe=False).combine_chunks()
            return pc.if_else(pc.is_null(text), None, numbers), text
        bad = pc.invert(pc.match_substring_regex(text, _NUMBER))
        what = "is not a number: write one without a unit, with a point and not a comma, as 0.25"
        self.refuse(bad, f"{what}; where it is unknown, leave the cell empty", text)
        return pc.cast(pc.utf8_trim_whitespace(text), pa.float64()), text

    def refuse(self, bad: pa.Array, what: str, values: pa.Array | None = None) -> None:
        """Raise for the first row of the mask `bad`, if there is one."""
        mask = np.asarray(pc.fill_null(bad, False))
        if not mask.any():
            return
        first, count = int(mask.argmax()), int(mask.sum())
        value = "" if values is None else f"{values[first].as_py()!r} "
        more = f" ({count - 1} more rows like it)" if count > 1 else ""
        row = first + self.first
        raise DataError(f"{self.file} row {row}, column {self.name!r}: {value}{what}{more}")


def relative_paths(column: Column, root: Path) -> Column:
    """Return the column of paths with those that are absolute and inside `root` relative to it."""
    text = column.text()
    if not pc.any(pc.starts_with(text, "/")).as_py():
        return column
    folders = [f"{folder}/" for folder in (root.absolute(), root.resolve())]
    paths = [
        next((path[len(f) :] for f in folders if path and path.startswith(f)), path)
        for path in text.to_pylist()
    ]
    outside = pa.array([bool(path) and path.startswith("/") for path in paths])
    if pc.any(outside).as_py():
        first = next(path for path in paths if path and path.startswith("/"))
        column.refuse(outside, _NOT_INSIDE + SpellingHints(root)(first), text)
    return replace(column, data=pa.chunked_array([pa.array(paths, pa.string())]))


def read_names(column: Column) -> list[Any]:
    """Return the cells as text, None where one is empty."""
    return column.text().to_pylist()


def read_labels(column: Column) -> list[Any]:
    """Return the cells as text; either every row must have one, or none."""
    text = column.text()
    if text.null_count < len(text):
        having = len(text) - text.null_count
        what = f"is empty; {having} of {len(text)} rows have a label: all must, or none"
        column.refuse(pc.is_null(text), what)
    return text.to_pylist()


def read_paths(column: Column) -> list[Any]:
    """Return the paths, which must be distinct and below the root, without ./ and //."""
    text = column.text()
    column.refuse(pc.is_null(text), "is empty")
    above = pc.or_(pc.starts_with(text, "/"), pc.match_substring_regex(text, _ABOVE))
    column.refuse(above, _NOT_INSIDE, text)
    if pc.any(pc.match_substring_regex(text, _UNTIDY)).as_py():
        text = pa.array([posixpath.normpath(path) for path in text.to_pylist()], pa.string())
    codes = text.dictionary_encode()
    if len(codes.dictionary) < len(text):
        index = np.asarray(codes.indices)
        first = np.unique(index, return_index=True)[1]
        repeated = np.ones(len(index), bool)
        repeated[first] = False
        row = int(first[index[repeated.argmax()]]) + column.first
        column.refuse(pa.array(repeated), f"is also in row {row}: list each file once", text)
    return text.to_pylist()


def read_splits(column: Column) -> list[Any]:
    """Return train, val or test for each row."""
    text = column.text()
    column.refuse(pc.is_null(text), "is empty: expected train, val or test in every row")
    by_name = {name: split_name(name) for name in pc.unique(text).to_pylist()}
    unknown = [name for name, split in by_name.items() if split is None]
    bad = pc.is_in(text, value_set=pa.array(unknown, pa.string()))
    column.refuse(bad, "is not a split: expected train, val or test", text)
    return [by_name[name] for name in text.to_pylist()]


def read_pixels(column: Column) -> list[Any]:
    """Return whole numbers, 0 or more, None where a cell is empty."""
    numbers, shown = column.numbers()
    column.refuse(pc.not_equal(numbers, pc.floor(numbers)), "is not whole", shown)
    what = "is negative; where it is unknown, leave the cell empty"
    column.refuse(pc.less(numbers, 0), what, shown)
    column.refuse(pc.greater(numbers, _MAX_PIXEL), f"is above {_MAX_PIXEL}", shown)
    return pc.cast(numbers, pa.int64()).to_pylist()


def read_resolutions(column: Column) -> list[Any]:
    """Return numbers above 0, None where a cell is empty."""
    numbers, shown = column.numbers()
    bad = pc.or_(pc.less_equal(numbers, 0), pc.invert(pc.is_finite(numbers)))
    what = "is not above 0, as microns per pixel are; where it is unknown, leave the cell empty"
    column.refuse(bad, what, shown)
    return numbers.to_pylist()


READERS: dict[str, Callable[[Column], list[Any]]] = {
    "path": read_paths,
    "label": read_labels,
    "split": read_splits,
    "patient": read_names,
    "slide": read_names,
    "site": read_names,
    "x": read_pixels,
    "y": read_pixels,
    "mpp": read_resolutions,
}
