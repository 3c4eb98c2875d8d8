"""Find the tars of a data set, and combine their scans: splits and class numbers."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from braceexpand import braceexpand

from common.console import log
from common.errors import DataError
from shards.foreign.scan import Scan
from shards.schema import MAX_PATCHES, NO_LABEL, valid_split
from shards.sources.splits import SPLITS, class_warnings, split_name

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_WORDS = re.compile(r"[^A-Za-z]+")
_NUMBER = re.compile(r"0|[1-9]\d{0,4}")
_UNLABELLED = "-1"
_SHOWN = 10


@dataclass(frozen=True)
class Tar:
    path: Path
    name: str  # relative to the folder that holds all tars
    split: str


Scanned = list[tuple[Tar, Scan]]


@dataclass(frozen=True)
class Collection:
    """Tars that hold samples, by split and in the order of their names."""

    splits: dict[str, Scanned]
    classes: list[str]  # by label; empty when unlabelled
    numbers: bool  # whether the labels in the tars are class numbers, not names
    first: int = 0  # the lowest class number: that of label 0

    def labels(self, scan: Scan) -> npt.NDArray[np.int32]:
        """Return (n,) class indices, one per row of the scan."""
        texts = scan.table["label"]
        if not self.classes:
            return np.full(len(texts), NO_LABEL, np.int32)
        names = self.classes
        if self.numbers:
            names = [str(self.first + i) for i in range(len(names))]
        return pc.fill_null(pc.index_in(texts, pa.array(names)), NO_LABEL).to_numpy()


def find_tars(source: str, split: str | None = None) -> list[Tar]:
    """Find the tars of a folder, or of a pattern with {a,b}, {000..009}, * and **, by name.

    Patterns never reach a shell. The split is `split`, or is taken from a word of the file's name
    or of one of its folders: `train-000000.tar`, `data/val/000000.tar`.

    Raises:
        DataError: no tar, a name without a match, a compressed tar, a tar of no split.
    """
    if split is not None and not valid_split(split):
        raise DataError(f"--split {split!r}: expected lower-case letters, digits and _")
    folder = Path(source)
    if folder.is_dir():
        base, files = folder, [path for path in folder.rglob("*") if path.is_file()]
        if compressed := [path for path in files if path.name.endswith(_COMPRESSED)]:
            raise DataError(
                f"{compressed[0]} is compressed: unpack it to a plain tar, or move it away"
            )
        paths = sorted(path for path in files if path.name.endswith(".tar"))
        if not paths:
            raise DataError(f"{source} holds no tars (*.tar)")
    else:
        paths = sorted(_expand(source))
        base = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(base).as_posix() for path in paths]
    for name in names:
        if not name.isprintable():
            raise DataError(f"{base}: a tar is named {name!r}: give it a plain name")
    return [
        Tar(path, name, split or _split(base, name))
        for path, name in zip(paths, names, strict=True)
    ]


def _expand(pattern: str) -> set[Path]:
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from None
    paths: set[Path] = set()
    for name in names:
        # an existing file is meant as it is, even with * in its name; Path.glob takes no
        # absolute pattern
        matches = [name] if Path(name).is_file() else glob.glob(name, recursive=True)  # noqa: PTH207
        files = {path for path in map(Path, matches) if path.is_file()}
        if not files:
            raise DataError(f"{name} does not exist; name a folder of tars, or a pattern of them")
        paths |= files
    for path in paths:
        if not path.name.endswith(".tar"):
            raise DataError(f"{path} is not named *.tar")
    return paths


def _split(base: Path, name: str) -> str:
    """Take the split from the file's name, then from its folders, the nearest first."""
    *folders, file = (base.resolve().name, *Path(name).parts)
    for text in (file.removesuffix(".tar"), *reversed(folders)):
        splits = {split for word in _WORDS.split(text) if (split := split_name(word))}
        if len(splits) == 1:
            return splits.pop()
    raise DataError(
        f"{base / name}: neither its name nor a folder says train, val or test; name the split of "
        f"all tars with --split"
    )


def collect(
    source: str, scanned: Scanned, label_field: str | None, names: list[str] | None
) -> Collection:
    """Sort scanned tars into splits, and number the classes.

    If all labels are numbers, they are the class numbers, from the lowest on; otherwise they are
    names, numbered in the order of `names`, or sorted. -1 is no label.

    Raises:
        DataError: no samples, one tar twice, tars whose samples differ in their members, labels
            that `names` lacks, a class that train lacks.
    """
    used = [(tar, scan) for tar, scan in scanned if len(scan.table)]
    _check(source, used, label_field)
    order = dict.fromkeys([*SPLITS, *(tar.split for tar, _ in used)])
    splits = {name: [pair for pair in used if pair[0].split == name] for name in order}
    splits = {name: pairs for name, pairs in splits.items() if pairs}
    if label_field is None and "cls" not in used[0][1].kinds:
        return Collection(splits, [], False)
    labels = {
        name: {label for _, scan in pairs for label in pc.unique(scan.table["label"]).to_pylist()}
        - {_UNLABELLED}
        for name, pairs in splits.items()
    }
    every = sorted(set().union(*labels.values()))
    if not every:
        return Collection(splits, [], False)
    numbers = all(_NUMBER.fullmatch(label) for label in every)
    first = 0
    if numbers:  # label 0 is the lowest number, unless the names begin before it
        low, high = min(map(int, every)), max(map(int, every))
        if names is None or high >= len(names) > high - low:
            first = low
    if names is None:
        names = [str(i) for i in range(first, high + 1)] if numbers else every
    classes = {str(first + i) for i in range(len(names))} if numbers else set(names)
    if unknown := [label for label in every if label not in classes]:
        raise DataError(
            f"{source}: labels {unknown[:_SHOWN]} are none of the classes {names[:_SHOWN]} "
            f"({f'{first} to {first + len(names) - 1}' if numbers else 'by name'}); mend --classes"
        )
    for warning in _offset_warnings(used) if numbers else ():
        log.warning(warning)
    for warning in class_warnings(Path(source), {split: set(labels[split]) for split in labels}):
        log.warning(warning)
    return Collection(splits, names, numbers, first)


def _offset_warnings(used: Scanned) -> list[str]:
    """Warn of labels that tars count from 0 and from 1, and of -1 as a class."""
    labels = {
        tar.name: {int(label) for label in pc.unique(scan.table["label"]).to_pylist()}
        for tar, scan in used
    }
    every = set().union(*labels.values())
    if every == {-1, 1}:
        return [
            "every label is 1 or -1, and -1 is no label: if it is a class, write 0 and 1, or names"
        ]
    low, high = min(every - {-1}), max(every)
    ranges = {name: of_tar - {-1} for name, of_tar in labels.items() if of_tar - {-1}}
    lower = [name for name, of_tar in ranges.items() if of_tar == set(range(low, high))]
    upper = [name for name, of_tar in ranges.items() if of_tar == set(range(low + 1, high + 1))]
    if high - low < 2 or not (lower and upper and len(lower) + len(upper) == len(ranges)):
        return []
    return [
        f"some tars seem to count the classes from {low}, others from {low + 1}: the labels of "
        f"{lower[0]} are {low} to {high - 1}, those of {upper[0]} {low + 1} to {high}: mend those"
    ]


def _check(source: str, used: Scanned, label_field: str | None) -> None:
    """Check that the tars are of one data set."""
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
