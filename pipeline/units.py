"""Units of a data set, whose patches are normalised by the same statistics, and those statistics.

A unit of fewer than MIN_PATCHES patches in all splits is normalised as its site, a site of fewer as
the whole data set. Statistics are of patches of train where the unit has MIN_PATCHES there, else of
its patches in all splits; labels are not used. Of a large unit some patches are read, evenly spaced
in the order of the shards: a fit takes minutes at most and gives the same numbers again.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from common.console import progress
from common.errors import DataError
from pipeline.index import Dataset
from pipeline.normalisation import (
    MIN_PATCHES,
    Normalisation,
    Normaliser,
    Statistics,
    Unit,
    statistics,
)
from pipeline.reader import Reader
from shards.codec.png import Pixels

WHOLE = "all"  # the unit of patches that have no other: the whole data set
# most patches that the statistics of a unit are computed from
MOST = {"source": 256, "slide": 256, "site": 4096, WHOLE: 16_384}

Rows = dict[str, NDArray[np.int64]]  # by split


class Units(NamedTuple):
    """The unit of every patch."""

    names: list[str]  # as `slide S1` and `site A`, and WHOLE
    codes: dict[str, NDArray[np.int32]]  # by split: (n,) index into names


@dataclass(frozen=True)
class StainTable:
    """The normalisation of a data set: contents of RUN/stain.json."""

    normalisation: Normalisation
    dataset_hash: str
    units: dict[str, Statistics]


def units_of(tables: Mapping[str, pa.Table], unit: Unit) -> Units:
    """Name the unit of every patch, from tables by split with the columns of `unit` and `site`."""
    table = pa.concat_tables([table.select(_columns(unit)) for table in tables.values()])
    names = pa.chunked_array([pa.nulls(len(table), pa.string())])
    for level in _columns(unit):
        counts = table[level].value_counts()
        large = counts.filter(pc.greater_equal(counts.field("counts"), MIN_PATCHES))
        own = pc.is_in(table[level], value_set=large.field("values").drop_null())
        name = pc.binary_join_element_wise(level, table[level], " ")
        names = pc.coalesce(names, pc.if_else(own, name, None))
    coded = pc.fill_null(names, WHOLE).combine_chunks().dictionary_encode()
    ends = np.cumsum([0, *map(len, tables.values())])
    codes = coded.indices.to_numpy()
    pieces = zip(tables, pairwise(ends.tolist()), strict=True)
    by_split = {split: codes[first:stop] for split, (first, stop) in pieces}
    return Units(coded.dictionary.to_pylist(), by_split)


def _columns(unit: Unit) -> list[str]:
    return list(dict.fromkeys((unit, "site")))


def fit(
    units: Units,
    names: list[str],
    read: Callable[[str, NDArray[np.int64]], Pixels],
    most: Mapping[str, int],
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Statistics]:
    """Compute the statistics of some units.

    Args:
        read: returns the patches of some rows of a split.
        most: patches per unit by the first word of its name; all where it is not named.
    """
    fitted = {}
    for name, rows in _rows_by_unit(units, names):
        sample = _sample(rows, most.get(name.split(" ")[0]))
        fitted[name] = statistics(np.concatenate([read(*item) for item in sample.items()]))
        advance(1)
    return fitted


def _rows_by_unit(units: Units, names: list[str]) -> Iterator[tuple[str, Rows]]:
    orders = {split: np.argsort(codes, kind="stable") for split, codes in units.codes.items()}
    edges = {
        split: np.searchsorted(codes[orders[split]], np.arange(len(units.names) + 1))
        for split, codes in units.codes.items()
    }
    number = {name: code for code, name in enumerate(units.names)}
    for name in names:
        if name == WHOLE:
            yield name, {split: np.arange(len(codes)) for split, codes in units.codes.items()}
        else:
            first, stop = number[name], number[name] + 1
            rows = {s: order[edges[s][first] : edges[s][stop]] for s, order in orders.items()}
            yield name, rows


def _sample(rows: Rows, most: int | None) -> Rows:
    """Take the rows of train if they are enough, else those of all splits; at most `most`."""
    if "train" in rows and len(rows["train"]) >= MIN_PATCHES:
        rows = {"train": rows["train"]}
    total = sum(map(len, rows.values()))
    spaced = np.arange(total)
    if most is not None and total > most:
        spaced = np.arange(most) * total // most
    ends = np.cumsum([0, *map(len, rows.values())])
    return {
        split: rows[split][spaced[(first <= spaced) & (spaced < stop)] - first]
        for split, (first, stop) in zip(rows, pairwise(ends.tolist()), strict=True)
    }


def fit_dataset(dataset: Dataset, unit: Unit, target: Statistics | None = None) -> StainTable:
    """Compute the statistics of the units of a data set that is not normalised.

    Args:
        target: what patches are moved to; None: the statistics of the train split.

    Raises:
        DataError: no patch names its unit, or no unit has MIN_PATCHES patches.
    """
    units = require_units(dataset, unit)
    names = sorted({*units.names, WHOLE} if target is None else units.names)
    with ExitStack() as stack:
        splits = dataset.splits.items()
        readers = {name: stack.enter_context(Reader(split)) for name, split in splits}
        task = f"measuring the staining of each {unit}"
        advance = stack.enter_context(progress(task, len(names), "units"))
        fitted = fit(units, names, lambda split, rows: readers[split].read(rows), MOST, advance)
    used = {name: fitted[name] for name in sorted(units.names)}
    return StainTable(Normalisation(unit, target or fitted[WHOLE]), dataset.hash, used)


def normalised(dataset: Dataset, table: StainTable | None) -> Dataset:
    """Return the data set with its patches normalised when they are read; as it is for None.

    Raises:
        DataError: the table is of another data set.
    """
    if table is None:
        return dataset
    units = _units(dataset, table.normalisation.unit)
    if dataset.hash != table.dataset_hash or {*units.names} != {*table.units}:
        raise DataError(
            f"the statistics of staining are of the data set {table.dataset_hash} with "
            f"{len(table.units)} units, not of {dataset.root} ({dataset.hash}) with "
            f"{len(units.names)}: restore the file, or remove it to measure them again"
        )
    by_unit = [table.units[name] for name in units.names]
    target = table.normalisation.target
    splits = {
        name: replace(split, normaliser=Normaliser(units.codes[name], by_unit, target))
        for name, split in dataset.splits.items()
    }
    return replace(dataset, splits=splits, normalisation=table.normalisation)


@lru_cache(maxsize=1)  # training checks, measures and normalises the same units
def _units(dataset: Dataset, unit: Unit) -> Units:
    columns = _columns(unit)
    units = units_of({name: s.columns(columns) for name, s in dataset.splits.items()}, unit)
    pa.default_memory_pool().release_unused()  # memory of the names
    return units


def require_units(dataset: Dataset, unit: Unit) -> Units:
    """Check that a data set has units, and name that of every patch.

    Raises:
        DataError: no patch names its unit, or no unit has MIN_PATCHES patches.
    """
    units = _units(dataset, unit)
    if any(name.startswith(f"{unit} ") for name in units.names):
        return units
    named = any(s.columns([unit])[unit].null_count < len(s) for s in dataset.splits.values())
    lack = f"has no {unit} of {MIN_PATCHES} patches or more" if named else f"names no {unit}"
    raise DataError(
        f"{dataset.root} {lack}, but the option normalise {unit} takes the statistics of staining "
        f"of each {unit}, never those of a few patches: pack the patches with a column {unit} "
        f"(docs/your-data.md), or choose another normalise, or a run with another"
    )
