"""The files of a public set: found among those that the command names, and checked by number."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from common.errors import DataError
from shards.known.sets import SETS, KnownSet, SetName
from shards.sources.names import require_utf8
from shards.sources.source import Collection, KnownOrigin, Origin, Patch

_MAX_TABLE_BYTES = 1 << 30


@dataclass(frozen=True)
class Inputs:
    """The files and folders that the command names, of one set.

    Raises:
        DataError: a path that does not exist, an archive, a file that is not of the set.
    """

    name: SetName
    paths: tuple[Path, ...]
    partial: bool = False  # accept fewer patches than were published

    def __post_init__(self) -> None:
        for path in self.paths:
            require_utf8(str(path.resolve()))
            if not path.exists():
                raise DataError(f"{path} does not exist{self._download}")
            if path.is_file():
                self._refuse_archive(path)
                if not any(fnmatchcase(path.name, pattern) for pattern in self.facts.files):
                    expected = ", ".join((*self.facts.files, "a folder"))
                    raise DataError(f"{path} is no file of {self.facts.title}: expected {expected}")

    @property
    def facts(self) -> KnownSet:
        return SETS[self.name]

    @cached_property
    def root(self) -> Path:
        """The folder that all paths of patches are relative to."""
        if len(self.paths) == 1 and self.paths[0].is_dir():
            return self.paths[0]
        return Path(os.path.commonpath([path.absolute().parent for path in self.paths]))

    def relative(self, path: Path) -> str:
        """Return a path that was found, relative to the root, with /."""
        return os.path.relpath(path.absolute(), self.root.absolute())

    def find(self, *names: str) -> Path | None:
        """Return the file or folder of one of these names: named by itself, or in a folder that is
        named, or in a folder in that one.

        Raises:
            DataError: there are several.
        """
        places = [path for path in self.paths if path.name in names]
        places += [folder / name for folder in self._folders for name in names]
        existing = {path for path in places if path.exists()}
        # a folder may hold the one of the same name that an archive brought
        matches = sorted(existing - {path.parent for path in existing})
        if len(matches) > 1:
            raise DataError(
                f"{matches[0]} and {matches[1]} are both there: name the file or folder to pack"
            )
        return matches[0] if matches else None

    def require(self, *names: str) -> Path:
        """As `find`.

        Raises:
            DataError: there is none, or only an archive.
        """
        path = self.find(*names)
        if path is None:
            for folder in self._folders:
                for entry in sorted(folder.iterdir()):
                    self._refuse_archive(entry)
            shown = ", ".join(map(str, self.paths))
            raise DataError(f"{names[0]} is missing in {shown}{self._download}")
        return path

    def check_count(self, what: object, unit: str, count: int, expected: int) -> None:
        """Check a number of patches against the published one.

        Args:
            what: file, folder or pattern that holds them.

        Raises:
            DataError: another number; fewer are accepted where that was asked for.
        """
        if count == expected or (self.partial and count < expected):
            return
        subset = "; --partial accepts a subset" if count < expected else ""
        raise DataError(f"{what}: {count:,} {unit}, expected {expected:,}{self._download}{subset}")

    def collection(
        self,
        patches: list[Patch],
        rule: str,
        *,
        notes: Sequence[str] = (),
        left_out: Mapping[str, int] | None = None,
        refused: Sequence[tuple[str, str]] = (),
    ) -> Collection:
        """Return the patches with what is known of the set.

        Args:
            rule: what the source of a patch is.
            left_out: number of patches by reason.
        """
        facts, counts = self.facts, {why: n for why, n in (left_out or {}).items() if n}
        known = KnownOrigin(
            name=self.name,
            title=facts.title,
            url=facts.url,
            licence=facts.licence,
            partial=self.partial,
            left_out=counts,
        )
        return Collection(
            root=str(self.root),
            name=self.root.resolve().name,
            patches=sorted(patches, key=lambda patch: (patch.path, patch.tile or (), patch.label)),
            refused=sorted(refused),
            rule=rule,
            splits_from="in docs/known-data.md",
            origin=Origin(layout=self.name, known=known),
            notes=[
                f"{facts.title}, {facts.url}; licence: {facts.licence}",
                *notes,
                *(f"left out: {count:,} {why}" for why, count in counts.items()),
            ],
        )

    @cached_property
    def _folders(self) -> list[Path]:
        """The folders that are named, and those in them."""
        outer = [path for path in self.paths if path.is_dir()]
        return [*outer, *sorted(p for path in outer for p in path.iterdir() if p.is_dir())]

    @property
    def _download(self) -> str:
        return f": download {self.facts.title} from {self.facts.url}"

    def _refuse_archive(self, path: Path) -> None:
        for pattern, command in (self.facts.archives or {}).items():
            if fnmatchcase(path.name, pattern) and path.is_file():
                raise DataError(
                    f"{path} is an archive: unpack it ({command} {shlex.quote(str(path))}) and "
                    f"name what was in it"
                )


def read_table(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Read columns of a CSV file as text.

    Raises:
        DataError: unreadable, not such a table, a column or a cell that is missing.
    """
    try:
        if path.stat().st_size > _MAX_TABLE_BYTES:
            raise DataError(f"{path} is larger than {_MAX_TABLE_BYTES} bytes: no such table")
        options = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()),
            include_columns=columns,
            strings_can_be_null=False,
        )
        table = pa_csv.read_csv(path, convert_options=options)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{path} is not the table of this set, with the columns {', '.join(columns)}: {error}"
        ) from None
    cells = {name: table[name].to_pylist() for name in columns}
    for name, values in cells.items():
        if "" in values:
            raise DataError(f"{path} row {values.index('') + 2}, column {name!r}: it is empty")
    return cells
