"""Label budgets: the same probe with labels of only a few groups a class.

A budget takes whole groups (source images, slides or patients), never single patches: labels of
one group are not independent. Each is drawn many times, from the data alone, so that every model
learns from the same labels.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from eval.measure.probe import Labelled, Probe, fit, macro_auroc
from shards.schema import NO_LABEL

DRAWS = 20
COUNTS = (1, 2, 5)  # groups a class
SHARES = (0.01, 0.05, 0.1)  # of the groups of a class, where that is at least one


@dataclass(frozen=True)
class Budget:
    """How many groups of each class are labelled."""

    name: str  # "k=2" or "10%"
    groups: dict[int, int]  # class to count


def budgets(labels: NDArray[np.int64], groups: Sequence[str]) -> list[Budget]:
    """The budgets that the train split allows: below all groups of every class, above none."""
    there = {label: len(names) for label, names in _groups_by_class(labels, groups).items()}
    found = [Budget(f"k={k}", dict.fromkeys(there, k)) for k in COUNTS]
    for share in SHARES:
        counts = {label: int(share * count) for label, count in there.items()}
        found.append(Budget(f"{share:.0%}", counts))
    return [
        budget
        for budget in found
        if all(0 < budget.groups[label] < count for label, count in there.items())
    ]


def draw(
    labels: NDArray[np.int64], groups: Sequence[str], budget: Budget, number: int
) -> NDArray[np.int64]:
    """The rows of train that one draw labels: all patches of a class in its chosen groups."""
    chosen: set[tuple[int, str]] = set()
    for label, names in _groups_by_class(labels, groups).items():
        ranked = sorted(names, key=lambda name: _hash(budget.name, number, label, name))
        chosen |= {(label, name) for name in ranked[: budget.groups[label]]}
    pairs = zip(labels.tolist(), groups, strict=True)
    return np.flatnonzero([pair in chosen for pair in pairs])


def fits(
    train: Labelled, val: Labelled, groups: Sequence[str], budget: Budget
) -> Iterator[tuple[Probe, int]]:
    """The probe of every draw, and how many patches it learned from."""
    for number in range(DRAWS):
        rows = draw(train.labels, groups, budget, number)
        yield fit(Labelled(train.features[rows], train.labels[rows]), val), len(rows)


def summary(budget: Budget, aurocs: list[float], patches: list[int]) -> dict[str, Any]:
    """Plain JSON; the spread over draws is not an interval for a difference of models."""
    return {
        "groups_per_class": [budget.groups[label] for label in sorted(budget.groups)],
        "patches": {"min": min(patches), "max": max(patches)},
        "draws": len(aurocs),
        "auroc": float(np.mean(aurocs)),
        "auroc_std_over_draws": float(np.std(aurocs, ddof=1)),
    }


def auroc(probe: Probe, test: Labelled) -> tuple[float, NDArray[np.float64]]:
    """Macro AUROC on test, and the (n, k) scores behind it."""
    scores = probe.scores(test.features)
    return macro_auroc(scores, probe.classes, test.labels), scores


def _groups_by_class(labels: NDArray[np.int64], groups: Sequence[str]) -> dict[int, set[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for label, name in zip(labels.tolist(), groups, strict=True):
        if label != NO_LABEL:
            found[label].add(name)
    return dict(found)


def _hash(*parts: object) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(map(str, parts)).encode())
