"""The data sets between which a probe is carried: opened, with one numbering of the classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import DataError
from eval.features import file_name
from eval.measure.scores import ScoreBook
from eval.measure.suite import SPLITS, Rows, obstacle, rows_of
from eval.session import EvalConfig, Session
from pipeline.index import open_dataset
from shards.remote.cache import local
from shards.schema import NO_LABEL

T = TypeVar("T")
Names = NDArray[np.object_]  # (n,)


@dataclass(frozen=True)
class Site:
    """A data set. Its labels count the classes as the first data set of the transfer does."""

    name: str  # unique, and safe as the name of a file
    session: Session
    classes: list[str]
    rows: Rows

    def column(self, name: str, split: str) -> Names:
        """(n,) values of a column of the sidecar, or `group`; None where unknown."""
        return np.array([*self.rows.tables[split][name].to_pylist(), None], object)[:-1]

    @property
    def sites(self) -> list[str]:
        """The sites that its column names in train, sorted."""
        return sorted({name for name in self.column("site", "train") if name is not None})

    def book(self) -> ScoreBook:
        """An empty one of its test split."""
        return ScoreBook(self.rows.tables["test"], len(self.classes))


def open_sites(
    folders: Sequence[Path | str], config: EvalConfig, say: Callable[[str], None]
) -> dict[str, Site]:
    """The data sets by name, their patches read: at most `config.probe_images` of each split.

    Raises:
        DataError: one cannot be opened or probed, two have other classes, or one is named twice.
    """
    paths = [local(folder) for folder in folders]
    found: dict[str, Site] = {}
    classes: list[str] = []
    for name, path in zip(short_names(paths), paths, strict=True):
        session = Session(open_dataset(path), config, say)
        if reason := obstacle(session):
            raise DataError(f"{path}: {reason}; transfer fits on train and tests on test")
        classes = classes or session.data.metadata.classes
        with session.timed(f"reading {name}"):
            found[name] = _site(name, session, classes)
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as tell them apart, safe as file names.

    Raises:
        DataError: a path is named twice.
    """
    whole = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, whole)) + 1):
        names = [file_name("-".join(parts[-count:])) for parts in whole]
        if len(set(names)) == len(names):
            return names
    twice = sorted({str(path) for path, parts in zip(paths, whole, strict=True)
                    if whole.count(parts) > 1})  # fmt: skip
    raise DataError(f"{twice} is named twice, or differs in unsafe characters only: name each once")


def _site(name: str, session: Session, classes: list[str]) -> Site:
    own = session.data.metadata.classes
    if set(own) != set(classes):
        raise DataError(
            f"{session.data.root} has the classes {sorted(own)}, the first data set "
            f"{sorted(classes)}; only there: {sorted(set(own) ^ set(classes))}. A probe needs the "
            "same classes at both: pack with equal class names"
        )
    table = np.array([*(classes.index(label) for label in own), NO_LABEL])  # -1 stays -1
    rows = rows_of(session)
    labels = {split: table[rows.labels[split]] for split in SPLITS}
    tables = {split: relabelled(rows.tables[split], labels[split]) for split in SPLITS}
    return Site(name, session, classes, replace(rows, labels=labels, tables=tables))


@dataclass(frozen=True)
class Places:
    """Which site every patch is of: what a site probe predicts."""

    names: list[str]
    labels: dict[str, NDArray[np.int64]]  # by split: index into names, -1 = not probed
    crossing: int  # patches of val and test left out, since their group is in an earlier split


def places_of(parts: Sequence[Site]) -> Places:
    """Of several data sets, each is a site; of one, its column says.

    A site that is not in train, val and test is left out.
    """
    groups = {s: _joined([[f"{p.name} {g}" for g in p.rows.groups(s)] for p in parts])
              for s in SPLITS}  # fmt: skip
    where = {s: _joined([_where(part, s, len(parts) > 1) for part in parts]) for s in SPLITS}
    everywhere = set.intersection(*(set(where[split]) for split in SPLITS))
    names = sorted(name for name in everywhere if name is not None)
    labels, earlier, crossing = {}, set[str](), 0
    for split in SPLITS:
        found = [names.index(place) if place in names else NO_LABEL for place in where[split]]
        again = np.array([group in earlier for group in groups[split]])
        labels[split] = np.where(again, NO_LABEL, np.array(found, np.int64))
        crossing += int(again.sum())
        earlier |= set(groups[split])
    return Places(names, labels, crossing)


def _where(part: Site, split: str, several: bool) -> list[str | None]:
    column = part.column("site", split).tolist()
    return [part.name] * len(column) if several else column


def _joined(lists: list[list[T]]) -> list[T]:
    return list(chain.from_iterable(lists))


def relabelled(rows: pa.Table, labels: NDArray[np.int64]) -> pa.Table:
    """The rows with other labels."""
    index = rows.column_names.index("label")
    return rows.set_column(index, "label", pa.array(labels, pa.int32()))
