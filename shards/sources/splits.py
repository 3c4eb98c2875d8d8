"""Splits: which folders are one, what each must hold, and whether a group crosses them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.console import printable
from common.errors import DataError

GROUPS = ("patient", "slide", "source")  # what no split should cut, the largest first
SPLITS = ("train", "val", "test")  # also the order in which samples are numbered
_ALIASES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHOWN = 10
_SHOWN_GROUPS = 5


def split_name(name: str) -> str | None:
    """The split that a folder or a cell names, in any case and with val spelled out, if any."""
    return _ALIASES.get(name.lower())


def split_folders(root: Path, names: list[str]) -> dict[str, str]:
    """Folder name to split, in any case; empty when no folder is named like a split.

    Raises:
        DataError: split folders beside others, or two folders for one split.
    """
    splits = {name: split for name in names if (split := split_name(name))}
    others = [name for name in names if name not in splits]
    if splits and others:
        raise DataError(
            f"{root} mixes split folders {sorted(splits)} with other folders "
            f"{others[:_SHOWN]}: move the others away, or put them into the splits"
        )
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root} has two folders for one split: {sorted(splits)}; keep one")
    return splits


def class_warnings(root: Path, labels: Mapping[str, set[str | None]]) -> list[str]:
    """What an evaluation will lack, from the classes in each split (None = unlabelled).

    Raises:
        DataError: a class that train lacks, or patches with and without a class.
    """
    every = set().union(*labels.values())
    if None in every and len(every) > 1:
        raise DataError(f"{root} has patches with and without a class folder: choose one layout")
    warnings = []
    if "train" not in labels:
        warnings.append("there is no train split: nothing can be trained on this set")
    if "val" not in labels:
        warnings.append(
            "there is no val split: training is not validated, and a probe has no data to select "
            "on (--val draws one)"
        )
    if None in every or "train" not in labels:
        return warnings
    for split in labels:
        if unknown := _sorted(labels[split] - labels["train"]):
            raise DataError(
                f"{root}: {split} has the classes {unknown} that train lacks; rename or move "
                f"them: a probe that never saw a class cannot be tested on it"
            )
        if missing := _sorted(labels["train"] - labels[split]):
            warnings.append(f"{split} lacks the classes {missing} of train")
    return warnings


def leaks(members: Iterable[tuple[str, str]]) -> list[str]:
    """The sorted groups that occur in more than one split, from (split, group) pairs."""
    counts = Counter(group for _, group in set(members))
    return sorted(group for group, splits in counts.items() if splits > 1)


def leak_warning(what: str, crossing: list[str]) -> str:
    """`N values of WHAT are in more than one split`, with examples."""
    shown = ", ".join(printable(group) for group in crossing[:_SHOWN_GROUPS])
    return (
        f"{len(crossing)} of the {what} groups are in more than one split "
        f"({shown}{', ...' if len(crossing) > _SHOWN_GROUPS else ''}): "
        f"scores on val and test will be too good"
    )


def _sorted(labels: set[str | None]) -> list[str]:
    return sorted(str(label) for label in labels)
