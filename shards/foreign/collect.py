"""Brings scanned tars together: what is in which split, and the number of every class."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import DataError
from shards.foreign.scan import Scan
from shards.foreign.tarlist import Tar
from shards.pack.plan import MAX_PATCHES
from shards.schema import NO_LABEL
from shards.sources.splits import SPLITS, class_warnings

_NUMBER = re.compile(r"0|[1-9]\d{0,4}")
_SHOWN = 10

Scanned = list[tuple[Tar, Scan]]


@dataclass(frozen=True)
class Found:
    """The tars that hold samples, by split and in the order of their names."""

    splits: dict[str, Scanned]
    classes: list[str]  # by label; empty when unlabelled
    numbers: bool  # the labels in the tars are numbers of classes, not names

    def labels(self, scan: Scan) -> npt.NDArray[np.int32]:
        """(n,) class indices of the rows of a tar."""
        texts = scan.table["label"]
        if not self.classes:
            return np.full(len(texts), NO_LABEL, np.int32)
        if self.numbers:
            return pc.cast(texts, pa.int32()).to_numpy()
        return pc.index_in(texts, pa.array(self.classes)).to_numpy()


def collect(
    source: str, scanned: Scanned, label_field: str | None, names: list[str] | None
) -> Found:
    """Sort scanned tars into splits, and number the classes.

    Labels that are all numbers stay these numbers; others are names, numbered in the order of
    `names`, or sorted.

    Raises:
        DataError: no samples, one tar twice, tars whose samples differ in their members, labels
            that `names` lacks, a class that train lacks.
    """
    used = [(tar, scan) for tar, scan in scanned if len(scan.table)]
    _check(source, used, label_field)
    present = dict.fromkeys([*SPLITS, *(tar.split for tar, _ in used)])
    splits = {name: [pair for pair in used if pair[0].split == name] for name in present}
    splits = {name: pairs for name, pairs in splits.items() if pairs}
    if label_field is None and "cls" not in used[0][1].kinds:
        return Found(splits, [], False)
    labels = {name: _labels(pairs) for name, pairs in splits.items()}
    every = sorted(set().union(*labels.values()))
    numbers = all(_NUMBER.fullmatch(label) for label in every)
    if names is None:
        names = [str(i) for i in range(max(map(int, every)) + 1)] if numbers else every
    known = {str(i) for i in range(len(names))} if numbers else set(names)
    if unknown := [label for label in every if label not in known]:
        raise DataError(
            f"{source}: labels {unknown[:_SHOWN]} are none of the classes {names[:_SHOWN]} "
            f"({'0 to ' + str(len(names) - 1) if numbers else 'by name'}); mend --classes"
        )
    for warning in class_warnings(Path(source), {s: set(found) for s, found in labels.items()}):
        print(f"warning: {warning}", file=sys.stderr)
    return Found(splits, names, numbers)


def _check(source: str, used: Scanned, label_field: str | None) -> None:
    """That the tars are of one data set."""
    if not used:
        raise DataError(f"{source}: no tar holds a sample")
    hashes: dict[str, str] = {}
    first, kinds = used[0][0].name, used[0][1].kinds
    for tar, scan in used:
        if (other := hashes.setdefault(scan.xxh3, tar.name)) != tar.name:
            raise DataError(f"{source}: {tar.name} has the bytes of {other}: remove one of them")
        if scan.kinds != kinds:
            raise DataError(
                f"{source}: samples have {sorted(scan.kinds)} beside the image in {tar.name} and "
                f"{sorted(kinds)} in {first}: index the tars apart, or --ignore what some lack"
            )
    if sum(len(scan.table) for _, scan in used) >= MAX_PATCHES:
        raise DataError(f"{source} holds more than {MAX_PATCHES} samples: index it in parts")
    if label_field is not None and "json" not in kinds:
        raise DataError(f"{source}: samples have no KEY.json with a field {label_field!r}")


def _labels(pairs: Scanned) -> set[str]:
    return {label for _, scan in pairs for label in pc.unique(scan.table["label"]).to_pylist()}
