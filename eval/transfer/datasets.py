"""The data sets of a transfer: with one numbering of the classes, and in each other's staining.

Staining is normalised by Reinhard's method, by site or by source image. Units and their statistics
are those of `pipeline.units`, of all patches that are probed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import DataError
from eval.config import EvalConfig, Stain
from eval.features import file_name
from eval.measure.probing import Rows, obstacle, read_rows
from eval.measure.scores import ScoreBook
from eval.session import Session, timed
from pipeline.index import open_dataset
from pipeline.normalisation import Normaliser, Statistics, Unit, statistics
from pipeline.units import Units, fit, units_of
from shards.codec.png import Pixels
from shards.remote.cache import local
from shards.schema import NO_LABEL
from shards.sources.splits import SPLITS

Names = NDArray[np.object_]  # (n,)


@dataclass(frozen=True)
class ProbedData:
    """A data set with its rows read; labels index `classes`, those of the first data set."""

    name: str  # unique, and safe as the name of a file
    session: Session
    classes: list[str]
    rows: Rows

    def column(self, name: str, split: str) -> Names:
        """Read values (n,) of a column of the sidecar, or of `group`; None where unknown."""
        return np.array([*self.rows.tables[split][name].to_pylist(), None], object)[:-1]

    @property
    def sites(self) -> list[str]:
        """The sites that its column `site` names in train, sorted."""
        return sorted({name for name in self.column("site", "train") if name is not None})

    def empty_book(self) -> ScoreBook:
        """Make a book without scores for the test split."""
        return ScoreBook(self.rows.tables["test"], len(self.classes))


def open_datasets(folders: Sequence[Path | str], config: EvalConfig) -> dict[str, ProbedData]:
    """Open data sets and read at most `config.probe_images` patches of each split, by name.

    Raises:
        DataError: one cannot be opened or probed, two have other classes, or one is named twice.
    """
    paths = [local(folder) for folder in folders]
    datasets: dict[str, ProbedData] = {}
    classes: list[str] = []
    for name, path in zip(short_names(paths), paths, strict=True):
        session = Session(open_dataset(path), config)
        if reason := obstacle(session):
            raise DataError(f"{path}: {reason}; transfer fits on train and tests on test")
        classes = classes or session.data.metadata.classes
        with timed(f"reading {name}"):
            datasets[name] = read_dataset(name, session, classes)
    return datasets


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by their last part, or by as many parts as tell them apart, safe as file names.

    Raises:
        DataError: a path is named twice.
    """
    folders = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, folders)) + 1):
        names = [file_name("-".join(folder[-count:])) for folder in folders]
        if len(set(names)) == len(names):
            return names
    pairs = zip(paths, folders, strict=True)
    twice = sorted({str(path) for path, folder in pairs if folders.count(folder) > 1})
    raise DataError(f"{twice} is named twice, or differs in unsafe characters only: name each once")


def read_dataset(name: str, session: Session, classes: list[str]) -> ProbedData:
    """Read the rows of a data set and number its labels as in `classes`.

    Raises:
        DataError: its classes are others.
    """
    own = session.data.metadata.classes
    if set(own) != set(classes):
        raise DataError(
            f"{session.data.root} has the classes {sorted(own)}, the first data set "
            f"{sorted(classes)}; only there: {sorted(set(own) ^ set(classes))}. A probe needs the "
            "same classes at both: pack with equal class names"
        )
    renumber = np.array([*(classes.index(label) for label in own), NO_LABEL])  # -1 stays -1
    rows = read_rows(session)
    labels = {split: renumber[rows.labels[split]] for split in SPLITS}
    tables = {split: with_labels(rows.tables[split], labels[split]) for split in SPLITS}
    return ProbedData(name, session, classes, replace(rows, labels=labels, tables=tables))


@dataclass(frozen=True)
class SiteLabels:
    """The site of every patch: what a site probe predicts."""

    names: list[str]
    labels: dict[str, NDArray[np.int64]]  # by split: index into names, -1 = not probed
    crossing: int  # patches of val and test left out because their group is in an earlier split


def site_labels(datasets: Sequence[ProbedData]) -> SiteLabels:
    """Label patches by site: of several data sets each is a site, of one its column says.

    A site that is not in train, val and test is left out.
    """
    groups: dict[str, list[str]] = {split: [] for split in SPLITS}
    sites: dict[str, list[str | None]] = {split: [] for split in SPLITS}
    for data in datasets:
        for split in SPLITS:
            groups[split] += [f"{data.name} {group}" for group in data.rows.groups(split)]
            column = data.column("site", split).tolist()
            sites[split] += [data.name] * len(column) if len(datasets) > 1 else column
    everywhere = set.intersection(*(set(sites[split]) for split in SPLITS))
    names = sorted(name for name in everywhere if name is not None)
    labels, earlier, crossing = {}, set[str](), 0
    for split in SPLITS:
        codes = [names.index(site) if site in names else NO_LABEL for site in sites[split]]
        again = np.array([group in earlier for group in groups[split]])
        labels[split] = np.where(again, NO_LABEL, np.array(codes, np.int64))
        crossing += int(again.sum())
        earlier |= set(groups[split])
    return SiteLabels(names, labels, crossing)


def with_labels(rows: pa.Table, labels: NDArray[np.int64]) -> pa.Table:
    """Replace the labels of a table."""
    index = rows.column_names.index("label")
    return rows.set_column(index, "label", pa.array(labels, pa.int32()))


class View(NamedTuple):
    """The patches of a split, normalised to the staining of the train split of `target`."""

    data: str
    split: str
    stain: Stain = "none"
    target: str = ""


class Views:
    """The pixels of views, each computed once."""

    def __init__(self, datasets: Mapping[str, ProbedData]) -> None:
        self.datasets = datasets
        self._pixels: dict[View, Pixels] = {}
        self._units: dict[tuple[str, Unit], tuple[Units, list[Statistics]]] = {}

    def view(self, data: str, split: str, stain: Stain, target: str) -> View:
        """Describe a view; its stain is "none" where normalisation would change nothing."""
        if stain == "none":
            return View(data, split)
        units, _ = self._fitted(data, stain)
        if data == target and stain == "site" and len(np.unique(units.codes["train"])) == 1:
            return View(data, split)
        return View(data, split, stain, target)

    def pixels(self, view: View) -> Pixels:
        """Compute the pixels (n, 32, 32, 3) of a view."""
        raw = self.datasets[view.data].rows.pixels[view.split]
        if view.stain == "none":
            return raw
        if view not in self._pixels:
            units, fitted = self._fitted(view.data, view.stain)
            target = statistics(self.datasets[view.target].rows.pixels["train"])
            pixels = raw.copy()
            normaliser = Normaliser(units.codes[view.split], fitted, target)
            normaliser.apply(pixels, np.arange(len(pixels)))
            self._pixels[view] = pixels
        return self._pixels[view]

    def _fitted(self, data: str, unit: Unit) -> tuple[Units, list[Statistics]]:
        if (data, unit) not in self._units:
            rows = self.datasets[data].rows
            units = units_of(rows.tables, unit)
            by_name = fit(units, units.names, lambda split, at: rows.pixels[split][at], most={})
            self._units[data, unit] = units, [by_name[name] for name in units.names]
        return self._units[data, unit]
