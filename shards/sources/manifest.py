"""Reads a manifest: a CSV or Parquet table that says what each patch is, checked column by column.

    path,label,split,patient,slide,site,x,y,mpp
    slide-7/p1.png,tumor,train,P-3,slide-7,Leeds,512,0,0.5

Only `path` is required. Texts are kept exactly, whatever type a Parquet column has; an empty cell
is no value. Everything here is about the table: whether the files exist is asked by
`shards.sources.listed`.
"""

import csv
import io
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import xxhash

from common.errors import DataError
from shards.sources.columns import READERS, Column


@dataclass(frozen=True)
class Columns:
    """Which column of the manifest holds what. Default: the one of that name, if there is one."""

    path: str | None = None
    """Image file, relative to SOURCE."""
    label: str | None = None
    """Class."""
    split: str | None = None
    """train, val or test."""
    patient: str | None = None
    slide: str | None = None
    site: str | None = None
    """Hospital or laboratory."""
    x: str | None = None
    """Pixel column in the slide."""
    y: str | None = None
    """Pixel row."""
    mpp: str | None = None
    """Microns a pixel."""


FIELDS = tuple(field.name for field in fields(Columns))
assert set(FIELDS) == set(READERS)


@dataclass(frozen=True)
class Rows:
    """A checked manifest: a list a field, one entry a row. Fields without a column are absent."""

    file: Path
    values: dict[str, list[Any]]  # paths without ./ and //; splits as train, val or test
    used: dict[str, str]  # field to column
    unused: list[str]
    xxh3: str  # of the file
    first: int  # number of the first row, as a person counts: below the heading of a CSV

    def __len__(self) -> int:
        return len(self.values["path"])

    def place(self, index: int, field: str = "path") -> str:
        """`FILE row 7, column 'path'`."""
        return f"{self.file} row {index + self.first}, column {self.used[field]!r}"


def read_manifest(file: Path, columns: Columns | None = None) -> Rows:
    """Read and check `file`, a `.csv` (commas, UTF-8) or a `.parquet`.

    Raises:
        DataError: unreadable, a missing column, a path that is empty, absolute, above the root
            or there twice, a split or number that is none, labels in some rows only.
    """
    blob = _read(file)
    is_csv = file.suffix.lower() == ".csv"
    names = _csv_names(file, blob) if is_csv else _parquet_names(file, blob)
    used = _choose(file, names, columns or Columns())
    try:
        table = (_csv_table if is_csv else _parquet_table)(blob, list(used.values()))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file} has no rows")
    unused = [name for name in names if name not in used.values()]
    digest = xxhash.xxh3_64_hexdigest(blob)
    rows = Rows(file, {}, used, unused, digest, 2 if is_csv else 1)
    for field, name in used.items():
        column = Column(file, name, rows.first, table[name])
        rows.values[field] = READERS[field](column)
    return rows


def suggestions(rows: Rows) -> list[str]:
    """Unused columns, each with the option that would use it where its name resembles a field."""
    found = []
    for name in rows.unused:
        free = [field for field in FIELDS if field not in rows.used]
        close = [field for field in free if name.lower().startswith(field)]
        close += get_close_matches(name.lower(), free, 1, 0.75)
        found.append(f"{name} (use it? --columns.{close[0]} {name})" if close else name)
    return found


def _read(file: Path) -> bytes:
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{file} is not a manifest: expected a .csv or a .parquet file")
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None


def _csv_names(file: Path, blob: bytes) -> list[str]:
    try:
        text = io.TextIOWrapper(io.BytesIO(blob), "utf-8-sig", newline="")
        return next(csv.reader(text, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read: {error}; expected a CSV in UTF-8 with a heading"
        ) from None


def _parquet_names(file: Path, blob: bytes) -> list[str]:
    try:
        return list(pq.read_schema(pa.BufferReader(blob)).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} is not readable as Parquet: {error}") from None


def _choose(file: Path, names: list[str], columns: Columns) -> dict[str, str]:
    """Field to column."""
    used: dict[str, str] = {}
    for field in FIELDS:
        asked: str | None = getattr(columns, field)
        name = asked or field
        if name in names:
            used[field] = name
        elif asked or field == "path":
            close = get_close_matches(name.lower(), [n.lower() for n in names], 1)
            hint = next((f"; did you mean {n!r}?" for n in names if n.lower() in close), "")
            commas = len(names) == 1 and ";" in names[0]
            hint += "; the heading has ';' in it: save the table with commas" if commas else ""
            raise DataError(
                f"{file} has no column {name!r}, only {names}{hint}. "
                f"Name the column with --columns.{field}"
            )
    for name in used.values():
        if names.count(name) > 1:
            raise DataError(f"{file} has {names.count(name)} columns named {name!r}; keep one")
        if list(used.values()).count(name) > 1:
            taken = [field for field, column in used.items() if column == name]
            raise DataError(f"{file}: column {name!r} is used for {taken}; it can be one of them")
    return used


def _csv_table(blob: bytes, names: list[str]) -> pa.Table:
    return pa_csv.read_csv(
        # A blank line is a row, so that rows are counted as an editor does, but not at the end.
        pa.BufferReader(blob.rstrip(b"\r\n") + b"\n"),
        # One thread: only then do errors give the row.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=16 << 20),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string())
        ),
    )


def _parquet_table(blob: bytes, names: list[str]) -> pa.Table:
    table = pq.read_table(pa.BufferReader(blob), columns=names)
    plain = [
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(plain))
