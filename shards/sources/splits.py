"""Groups of patches, and the splits that keep them whole.

A group is a patient, a slide or a source. Splits are named by folders or cells, or drawn by group
(`--val F --test F`). A drawn group goes to one split as a whole. Groups are taken from the
large to the small, in random order among those of similar size. Each goes to the split that, for
the classes of the group, is filled least in proportion to its fraction. Then groups move to splits
that lack a class. The result depends on (groups, classes, counts, seed) only.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from common.console import printable
from common.errors import DataError
from shards.sources.source import Groups, Patch
from shards.sources.values import plain_name

Group = tuple[str, str]  # kind and name
Label = str | None

GROUPS = ("patient", "slide", "source")  # what no split should cut, the largest first
UNKNOWN = "patch"  # kind of the group of a patch whose source is unknown
SPLITS = ("train", "val", "test")  # also the order in which samples are numbered
_NAMES = {"train": "train training", "val": "val valid validation", "test": "test testing"}
_ALIASES = {alias: split for split, aliases in _NAMES.items() for alias in aliases.split()}
_SET = re.compile(r"[-_ ]?(?:set|split)$")  # train_set, TestSet
_SHOWN = 10
_NO_VAL = "there is no val split: training is not validated, and a probe has no data to select on"
_SHOWN_GROUPS = 5
_EXAMPLES = 2  # of each kind of group


def group_facts(patches: Sequence[Patch], rule: str) -> Groups:
    """Count the patches by the kind of their group, with examples of each kind.

    Args:
        rule: what the source of a patch is.
    """
    kinds = (*GROUPS, UNKNOWN)
    counts = dict.fromkeys(kinds, 0)
    examples: dict[str, list[list[str]]] = {kind: [] for kind in kinds}
    names: set[tuple[str, str]] = set()
    for patch in patches:
        kind, name = group = patch.group
        counts[kind] += 1
        if len(examples[kind]) < _EXAMPLES and group not in names:
            names.add(group)
            examples[kind].append([patch.path, kind, name])
    return Groups(
        rule=rule,
        patches={kind: counts[kind] for kind in kinds if counts[kind]},
        examples=[example for kind in kinds for example in examples[kind]],
    )


def describe_groups(groups: Groups) -> list[str]:
    """Describe in lines what the groups are, with counts and examples."""
    lines = [f"sources: {groups.rule}"]
    for kind, count in groups.patches.items():
        examples = [
            printable(path) if kind == UNKNOWN else f"{printable(name)} from {printable(path)}"
            for path, of_kind, name in groups.examples
            if of_kind == kind
        ]
        text = "source unknown" if kind == UNKNOWN else f"grouped by {kind}"
        lines.append(f"  {count:,} patches {text}: {', '.join(examples)}")
    return lines


def unknown_sources(provenance: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of patches whose source is unknown, and of all, from `dataset.json`.

    (0, 0) where the data set does not say: it was packed before this was recorded.
    """
    try:
        groups = msgspec.convert(provenance.get("sources"), Groups)
    except msgspec.ValidationError:
        return 0, 0
    return groups.patches.get(UNKNOWN, 0), sum(groups.patches.values())


def unknown_warning(unknown: int, total: int) -> str:
    """Warn that the source of patches is unknown; empty if none is."""
    if not unknown:
        return ""
    every = "every patch" if unknown == total else f"{unknown:,} of {total:,} patches"
    return (
        f"the source is unknown of {every}: for these, splits, budgets and intervals are by patch, "
        f"so patches of one slide or patient may be in train and in test (leakage), and scores may "
        f"be too good. Where it is known, name it to shards.pack: --group-regex RE, or --manifest "
        f"with a column slide or patient"
    )


def split_name(name: str) -> str | None:
    """Return the split that a folder or cell names, if any: `Train`, `validation`, `test_set`."""
    return _ALIASES.get(_SET.sub("", name.strip().lower()))


def split_folders(root: Path, names: list[str]) -> dict[str, str]:
    """Map folder names to splits; empty when no folder is named like a split.

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


def split_warnings(
    root: Path, members: Iterable[tuple[str, str | None]], can_draw: bool = False
) -> list[str]:
    """Warn of splits and classes that an evaluation will lack, from those of every patch.

    Args:
        can_draw: say how a val split is drawn.

    Raises:
        DataError: as `class_warnings`.
    """
    labels: dict[str, set[str | None]] = defaultdict(set)
    for split, label in dict.fromkeys(members):
        labels[split].add(label)
    warnings = class_warnings(root, labels)
    hint = " (--val draws one)" if can_draw else ""
    return [text + hint if text == _NO_VAL else text for text in warnings]


def class_warnings(root: Path, labels: Mapping[str, set[str | None]]) -> list[str]:
    """Warn of splits and classes that an evaluation will lack (None in `labels`: unlabelled).

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
        warnings.append(_NO_VAL)
    if None in every or "train" not in labels:
        return warnings
    classes = {split: set(map(str, names)) for split, names in labels.items()}
    for split, names in classes.items():
        if unknown := sorted(names - classes["train"]):
            similar = {plain_name(name): name for name in classes["train"]}
            alike = [(name, similar.get(plain_name(name))) for name in unknown]
            pairs = [(name, other) for name, other in alike if other is not None]
            hint = "; {!r} and {!r} differ in the way of writing alone: pack with --tidy-labels"
            raise DataError(
                f"{root}: {split} has the classes {unknown} that train lacks; rename or move "
                f"them: a probe that never saw a class cannot be tested on it"
                f"{hint.format(*pairs[0]) if pairs else ''}"
            )
        if missing := sorted(classes["train"] - names):
            warnings.append(f"{split} lacks the classes {missing} of train")
    return warnings


def leaks(members: Iterable[tuple[str, str]]) -> list[str]:
    """Return the sorted groups in more than one split, from (split, group) pairs."""
    counts = Counter(group for _, group in set(members))
    return sorted(group for group, splits in counts.items() if splits > 1)


def leak_warning(what: str, crossing: list[str]) -> str:
    """Warn that groups of the kind `what` are in more than one split, with examples."""
    shown = ", ".join(printable(group) for group in crossing[:_SHOWN_GROUPS])
    return (
        f"{len(crossing)} of the {what} groups are in more than one split "
        f"({shown}{', ...' if len(crossing) > _SHOWN_GROUPS else ''}): "
        f"scores on val and test will be too good"
    )


@dataclass
class _Draw:
    """The state of a draw."""

    content: dict[Group, Counter[Label]]  # patches of a group by class
    totals: Counter[Label]
    fractions: Mapping[str, float]
    rank: dict[Group, int]  # place in the random order
    split: dict[Group, str] = field(default_factory=dict)
    filled: Counter[tuple[str, Label]] = field(default_factory=Counter)  # number of patches
    having: Counter[tuple[str, Label]] = field(default_factory=Counter)  # number of groups

    def put(self, group: Group, split: str) -> None:
        """Put the group into a split, out of the one it was in."""
        if group in self.split:
            self._count(group, self.split[group], -1)
        self._count(group, split, 1)
        self.split[group] = split

    def _count(self, group: Group, split: str, sign: int) -> None:
        for label, count in self.content[group].items():
            self.filled[split, label] += sign * count
            self.having[split, label] += sign

    def excess(self, group: Group, split: str) -> float:
        """Return how full the split would be with the group, summed over the group's classes."""
        full = 0.0
        for label, count in self.content[group].items():
            total = self.totals[label]
            full += count * (self.filled[split, label] + count) / (total * total)
        return full / self.fractions[split]

    def can_spare(self, group: Group) -> bool:
        """Whether every class of the group is also in another group of its split."""
        split = self.split[group]
        return all(self.having[split, label] > 1 for label in self.content[group])


def draw_splits(
    members: Iterable[tuple[Group, Label]], val: float, test: float, seed: int
) -> tuple[dict[Group, str], list[str]]:
    """Draw the split of every group; also return a warning for every class that a split lacks.

    Args:
        members: group and class of every patch, in any order.
        val, test: fractions of the patches, each 0 or more, together below 1.

    Raises:
        DataError: fewer groups than splits.
    """
    fractions = {"train": 1 - val - test, "val": val, "test": test}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction}
    content: dict[Group, Counter[Label]] = defaultdict(Counter)
    totals: Counter[Label] = Counter()
    for (group, label), count in Counter(members).items():
        content[group][label] += count
        totals[label] += count
    if len(content) < len(fractions):
        kinds = ", ".join(sorted({kind for kind, _ in content}))
        raise DataError(
            f"{len(content)} groups ({kinds}) cannot fill {', '.join(fractions)}: no group is cut. "
            f"Name finer groups, or ask for fewer splits"
        )

    def place(group: Group) -> tuple[int, int, Group]:
        random = xxhash.xxh3_64_intdigest("\0".join((str(seed), *group)).encode())
        return -content[group].total().bit_length(), random, group

    order = sorted(content, key=place)
    draw = _Draw(dict(content), totals, fractions, {group: i for i, group in enumerate(order)})
    for group in order:
        draw.put(group, min(fractions, key=lambda split: draw.excess(group, split)))
    return draw.split, _mend(draw)


def _mend(draw: _Draw) -> list[str]:
    """Move groups to where a class is missing; train first, since no class may be missing there."""
    groups: dict[Label, list[Group]] = defaultdict(list)
    for group, labels in draw.content.items():
        for label in labels:
            groups[label].append(group)
    warnings = []
    rare_first = sorted(groups, key=lambda label: (len(groups[label]), label or ""))
    for split in draw.fractions:
        for label in rare_first:
            if draw.having[split, label]:
                continue
            movable = [g for g in groups[label] if split == "train" or draw.can_spare(g)]
            if movable:
                draw.put(min(movable, key=lambda g: (draw.excess(g, split), draw.rank[g])), split)
                continue
            count = len(groups[label])
            why = f"has {count} group{'s' if count > 1 else ''}"
            why += ", shared with others" if count >= len(draw.fractions) else ""
            warnings.append(f"class {label!r} {why}: none is left for {split}")
    return warnings
