"""Splits drawn by group: `--val F --test F` for a source that has none.

A group (patient, slide or source) goes to one split as a whole. Groups are taken from the large to
the small, in random order among those of about one size, and each goes to the split that its
classes have filled the least of what they should; then groups move where a class would be missing
from a split. The result depends on (groups, classes, counts, seed) only.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import xxhash

from common.errors import DataError
from shards.sources.splits import SPLITS

Group = tuple[str, str]  # kind and name
Label = str | None


@dataclass
class _Draw:
    """The state of a draw."""

    content: dict[Group, Counter[Label]]  # patches of a group by class
    totals: Counter[Label]
    fractions: Mapping[str, float]
    rank: dict[Group, int]  # place in the random order
    split: dict[Group, str] = field(default_factory=dict)
    filled: Counter[tuple[str, Label]] = field(default_factory=Counter)  # patches
    having: Counter[tuple[str, Label]] = field(default_factory=Counter)  # groups

    def put(self, group: Group, split: str) -> None:
        for name, sign in ((self.split.get(group), -1), (split, 1)):
            for label, count in self.content[group].items() if name else ():
                self.filled[name or "", label] += sign * count
                self.having[name or "", label] += sign
        self.split[group] = split

    def excess(self, group: Group, split: str) -> float:
        """How full the split would be with the group, over the classes of the group."""
        full = 0.0
        for label, count in self.content[group].items():
            total = self.totals[label]
            full += count * (self.filled[split, label] + count) / (total * total)
        return full / self.fractions[split]

    def can_spare(self, group: Group) -> bool:
        """Whether the split of the group has every class of it in another group too."""
        split = self.split[group]
        return all(self.having[split, label] > 1 for label in self.content[group])


def assign(
    members: Iterable[tuple[Group, Label]], val: float, test: float, seed: int
) -> tuple[dict[Group, str], list[str]]:
    """The split of every group, and a warning for every class that a split lacks.

    Args:
        members: group and class of every patch, in any order.
        val, test: fractions of the patches, from 0; below 1 together.

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
        raise DataError(
            f"{len(content)} groups ({_kinds(content)}) cannot fill {', '.join(fractions)}: no "
            f"group is cut. Name finer groups, or ask for fewer splits"
        )
    order = sorted(content, key=lambda g: (-content[g].total().bit_length(), _hash(seed, g), g))
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


def _hash(seed: int, group: Group) -> int:
    return xxhash.xxh3_64_intdigest("\0".join((str(seed), *group)).encode())


def _kinds(groups: Iterable[Group]) -> str:
    return ", ".join(sorted({kind for kind, _ in groups}))


def achieved(
    members: Iterable[tuple[str, Group, Label]],
) -> dict[str, dict[str, dict[str, int]]]:
    """Patches and groups by split and class, from (split, group, class) of every patch; the class
    of unlabelled patches is the empty text."""
    patches = Counter(members)
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (split, _, label), count in patches.items():
        cell = table.setdefault(split, {}).setdefault(label or "", {"patches": 0, "groups": 0})
        cell["patches"] += count
        cell["groups"] += 1
    return {split: table[split] for split in SPLITS if split in table}
