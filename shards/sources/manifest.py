"""Patches that a manifest lists: a CSV, TSV or Parquet table with a row per patch.

    path,label,split,patient,slide,site,x,y,mpp
    slide-7/p1.png,tumor,train,P-3,slide-7,Leeds,512,0,0.5

Only `path` is required: relative to SOURCE, or absolute and inside it. Texts are kept exactly,
whatever type a Parquet column has; an empty cell has no value.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import xxhash
from msgspec import UNSET

from common.errors import DataError
from shards.sources.columns import READERS, Column, relative_paths
from shards.sources.files import CHUNK, FileSource, folder_advice, suffix_advice
from shards.sources.names import barcode_notes, numbers_are_slides
from shards.sources.source import Collection, LookUp, ManifestOrigin, Origin, Patch
from shards.sources.spelling import SpellingHints

_SHOWN = 10


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the manifest. Default: the column named like the field, if any."""

    path: str | None = None
    """Image file, relative to SOURCE."""
    label: str | None = None
    """Class."""
    split: str | None = None
    """train, val or test."""
    patient: str | None = None
    """Patient."""
    slide: str | None = None
    """Slide."""
    site: str | None = None
    """Hospital or laboratory."""
    x: str | None = None
    """Pixel column of the patch in its slide or source image."""
    y: str | None = None
    """Pixel row of the patch."""
    mpp: str | None = None
    """Microns per pixel."""


FIELDS = tuple(field.name for field in fields(Columns))
assert set(FIELDS) == set(READERS)


@dataclass(frozen=True, kw_only=True)
class ManifestRows:
    """A checked manifest: for each field that has a column, a value per row."""

    file: Path
    values: dict[str, list[Any]]  # paths without ./ and //; splits as train, val or test
    used: dict[str, str]  # field to column
    unused: list[str]
    xxh3: str  # of the file
    first: int  # number of the first row, as a spreadsheet counts: 2 below the heading of a CSV

    def __len__(self) -> int:
        return len(self.values["path"])

    def place(self, index: int, field: str = "path") -> str:
        """Name a cell: `FILE row 7, column 'path'`."""
        return f"{self.file} row {index + self.first}, column {self.used[field]!r}"


class ManifestSource(FileSource, frozen=True, kw_only=True, tag=True):
    """The files under a root that a manifest lists.

    A field for which the manifest has a column is taken from it alone. Otherwise the position comes
    from the file name, and patient and site from a TCGA barcode in the slide or source.
    """

    manifest: Path
    columns: Columns = Columns()
    missing: tuple[str, ...] = ()  # texts that mean no patient, slide or site

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches, sorted by path.

        Raises:
            DataError: as `read_manifest`; the root is not a folder, a row whose file does not
                exist or whose link leaves the root, a path that the regex does not match.
        """
        rows = read_manifest(self.manifest, self.columns, self.root)
        if not self.root.is_dir():
            what = f"paths of {rows.file} are relative to SOURCE"
            raise DataError(folder_advice(self.root, what))
        paths = rows.values["path"]
        columns = {name: values for name, values in rows.values.items() if name != "path"}
        columns.setdefault("split", ["train"] * len(rows))
        emptied = self._empty(columns)
        stems: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            folder, _, name = path.rpartition("/")
            stems[folder].append(name.rpartition(".")[0])
        patches: list[Patch] = []
        refused: list[tuple[str, str]] = []
        respelled: list[tuple[int, str]] = []
        missing: list[tuple[int, str]] = []
        numbered = numbers_are_slides([*stems.values()])
        batches = self.batches(paths, columns, numbered, listed=True)
        for start, result in zip(range(0, len(rows), CHUNK), look_up(batches), strict=True):
            if result.error:
                index, reason = result.error
                raise DataError(f"{rows.place(start + index)}: {reason}")
            patches += result.patches
            refused += result.refused
            respelled += [(start + i, path) for i, path in result.respelled]
            missing += [(start + i, reason) for i, reason in result.missing]
        if missing:
            self._refuse_missing(rows, missing)
        notes = _respelling_notes(rows, respelled)
        hint = SpellingHints(self.root)
        refused = [
            (path, reason if (self.root / path).exists() else f"no such file{hint(path)}; {reason}")
            for path, reason in sorted(refused)
        ]
        patches.sort(key=lambda patch: patch.path)
        from_names = [field for field in ("patient", "site") if field not in rows.used]
        origin = ManifestOrigin(
            name=rows.file.name, xxh3=rows.xxh3, rows=len(rows), columns=rows.used
        )
        return Collection(
            root=str(self.root),
            name=self.name,
            patches=patches,
            refused=refused,
            rule=self.rule,
            splits_from=f"column in {self.manifest}" if "split" in rows.used else "",
            origin=Origin(manifest=origin, links="followed" if self.follow_links else UNSET),
            notes=[describe(rows), *notes, *emptied, *barcode_notes(patches, from_names)],
            warnings=_overlooked_columns(rows),
        )

    def _refuse_missing(self, rows: ManifestRows, missing: list[tuple[int, str]]) -> NoReturn:
        """Name the first rows whose files are not there, with what may have been meant."""
        paths, hint = rows.values["path"], SpellingHints(self.root)
        lines = [
            f"  {rows.place(i)}: {paths[i]!r}: {reason}{hint(paths[i])}"
            for i, reason in missing[:_SHOWN]
        ]
        more = f"\n  ... and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(rows)} files that {rows.file} lists cannot be found in "
            f"{self.root} (paths are relative to it, with / between folders):\n"
            + "\n".join(lines)
            + more
        )

    def _empty(self, columns: dict[str, list[Any]]) -> list[str]:
        """Empty the cells whose text means no value; return a line on them."""
        counts: Counter[str] = Counter()
        for field in ("patient", "slide", "site") if self.missing else ():
            values = columns.get(field, [])
            bad = [value in self.missing for value in values]
            counts[field] = sum(bad)
            if counts[field]:
                pairs = zip(values, bad, strict=True)
                columns[field] = [None if empty else value for value, empty in pairs]
        shown = ", ".join(f"{field} of {count:,} rows" for field, count in counts.items() if count)
        return [f"taken as empty by --missing: {shown or 'nothing'}"] if self.missing else []


def _respelling_notes(rows: ManifestRows, respelled: Sequence[tuple[int, str]]) -> list[str]:
    """Describe the paths that name a file in another spelling.

    Raises:
        DataError: two rows name one file.
    """
    if not respelled:
        return []
    paths = list(rows.values["path"])
    for i, path in respelled:
        paths[i] = path
    first: dict[str, int] = {}
    for i, path in enumerate(paths):
        if (other := first.setdefault(path, i)) != i:
            raise DataError(
                f"{rows.place(i)}: {rows.values['path'][i]!r} is {path!r}, which is also in row "
                f"{other + rows.first}: list each file once"
            )
    i, path = respelled[0]
    return [
        f"{len(respelled):,} paths were found in another spelling (suffix or Unicode form), as "
        f"{path!r} for {rows.values['path'][i]!r}"
    ]


def read_manifest(
    file: Path, columns: Columns | None = None, root: Path | None = None
) -> ManifestRows:
    """Read and check `file`, a `.csv` or `.tsv` (commas or tabs, UTF-8) or a `.parquet`.

    Args:
        root: folder in which absolute paths are taken; None: absolute paths are refused.

    Raises:
        DataError: unreadable, a missing column, a path that is empty, outside of the root or
            there twice, a cell that is no split or number, labels in some rows only.
    """
    if file.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        advice = suffix_advice(file.suffix[1:].lower()) if file.suffix[1:2] in "xoXO" else ""
        raise DataError(f"{file} is not a manifest: expected a .csv, .tsv or .parquet file{advice}")
    try:
        blob = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    is_csv = file.suffix.lower() != ".parquet"
    separator = ","
    if is_csv:
        names, separator = _csv_names(file, blob)
    else:
        try:
            names = list(pq.read_schema(pa.BufferReader(blob)).names)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{file} is not readable as Parquet: {error}") from None
    used = _choose(file, names, columns or Columns())
    try:
        asked = list(used.values())
        table = _csv_table(blob, asked, separator) if is_csv else _parquet_table(blob, asked)
        table.validate(full=True)  # Parquet may hold text that is not UTF-8
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    if not table.num_rows:
        raise DataError(f"{file} has no rows")
    first = 2 if is_csv else 1
    cells = {field: Column(file, name, first, table[name]) for field, name in used.items()}
    if root is not None:
        cells["path"] = relative_paths(cells["path"], root)
    return ManifestRows(
        file=file,
        values={field: READERS[field](column) for field, column in cells.items()},
        used=used,
        unused=[name for name in names if name not in used.values()],
        xxh3=xxhash.xxh3_64_hexdigest(blob),
        first=first,
    )


def describe(rows: ManifestRows) -> str:
    """Describe a manifest in a line: its file, its rows, and the columns used and not used."""
    used = [f if f == column else f"{f} from {column}" for f, column in rows.used.items()]
    line = f"manifest {rows.file}: {len(rows):,} rows; {', '.join(used)}"
    unused = unused_columns(rows)
    return f"{line}; not used: {', '.join(unused)}" if unused else line


def _overlooked_columns(rows: ManifestRows) -> list[str]:
    """Warn of columns that are named like a field but for case, blanks or an ending such as _id."""
    warnings = []
    for field in FIELDS:
        pattern = rf"\s*{field}(?:[-_ ]?(?:id|name|nr|no|number))?\s*"
        close = [name for name in rows.unused if re.fullmatch(pattern, name, re.IGNORECASE)]
        if field not in rows.used and len(close) == 1:
            warnings.append(
                f"the column {close[0]!r} of {rows.file} is not used, and there is none named "
                f"{field!r}: --columns.{field} {close[0]!r} uses it"
            )
    return warnings


def unused_columns(rows: ManifestRows) -> list[str]:
    """List the unused columns, with the option that would use one whose name resembles a field."""
    lines = []
    for name in rows.unused:
        free = [field for field in FIELDS if field not in rows.used]
        close = [field for field in free if name.lower().startswith(field)]
        close += get_close_matches(name.lower(), free, 1, 0.75)
        lines.append(f"{name} (use it? --columns.{close[0]} {name})" if close else name)
    return lines


def _csv_names(file: Path, blob: bytes) -> tuple[list[str], str]:
    """Return the heading of a CSV, and what separates its columns: commas, or tabs."""
    try:
        heading = io.TextIOWrapper(io.BytesIO(blob), "utf-8-sig", newline="")
        names = next(csv.reader(heading, strict=True), [])
        if len(names) > 1 or not any("\t" in name for name in names):
            return names, ","
        heading.seek(0)
        return next(csv.reader(heading, strict=True, delimiter="\t"), []), "\t"
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{file} cannot be read: {error}; expected a CSV in UTF-8 with a heading (in a "
            f"spreadsheet: save as CSV UTF-8)"
        ) from None


def _choose(file: Path, names: list[str], columns: Columns) -> dict[str, str]:
    """Choose the column of each field.

    Raises:
        DataError: a column that is missing, there twice, or used for two fields.
    """
    used: dict[str, str] = {}
    for field in FIELDS:
        asked: str | None = getattr(columns, field)
        name = asked or field
        if name in names:
            used[field] = name
        elif asked or field == "path":
            close = get_close_matches(name.lower(), [n.lower() for n in names], 1)
            hint = next((f"; did you mean {n!r}?" for n in names if n.lower() in close), "")
            if len(names) == 1 and (other := next((c for c in ";|" if c in names[0]), "")):
                hint += f"; the heading has {other!r} in it: save the table with commas"
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


def _csv_table(blob: bytes, names: list[str], separator: str) -> pa.Table:
    return pa_csv.read_csv(
        # A blank line is a row, so that rows are counted as an editor does, but not at the end.
        pa.BufferReader(blob.rstrip(b"\r\n") + b"\n"),
        # One thread: only then do errors give the row.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=16 << 20),
        parse_options=pa_csv.ParseOptions(
            delimiter=separator, newlines_in_values=True, ignore_empty_lines=False
        ),
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
