"""Label budgets: the primary probe with labels of only a few groups per class.

A budget takes whole groups (patients, slides or source images), never single patches: labels of one
group are not independent. Each is drawn many times, from the data alone, so that every model learns
from the same labels.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from eval.measure.probe import Labelled, fit
from eval.measure.scores import Condition, ScoreBook
from eval.results import BudgetScores, Range
from eval.session import timed
from shards.schema import NO_LABEL

DRAWS = 20
COUNTS = (1, 2, 5)  # groups per class
SHARES = (0.01, 0.05, 0.1)  # of the groups of a class, where that is at least one


@dataclass(frozen=True)
class Budget:
    """How many groups of each class are labelled."""

    name: str  # "k=2" or "10%"
    groups: dict[int, int]  # by class


def budgets(labels: NDArray[np.int64], groups: Sequence[str]) -> list[Budget]:
    """List the budgets that a train split allows: above no and below all groups of each class."""
    available = {label: len(names) for label, names in _groups_by_class(labels, groups).items()}
    every = [Budget(f"k={k}", dict.fromkeys(available, k)) for k in COUNTS]
    for share in SHARES:
        counts = {label: int(share * count) for label, count in available.items()}
        every.append(Budget(f"{share:.0%}", counts))
    return [
        budget
        for budget in every
        if all(0 < budget.groups[label] < count for label, count in available.items())
    ]


def draw(
    labels: NDArray[np.int64], groups: Sequence[str], budget: Budget, number: int
) -> NDArray[np.int64]:
    """Draw the rows of train that are labelled: all patches of a class in the drawn groups."""
    drawn: set[tuple[int, str]] = set()
    for label, names in _groups_by_class(labels, groups).items():
        prefix = f"{budget.name}\0{number}\0{label}\0"
        hashes = {name: xxhash.xxh3_64_intdigest((prefix + name).encode()) for name in names}
        ranked = sorted(names, key=lambda name: hashes[name])
        drawn |= {(label, name) for name in ranked[: budget.groups[label]]}
    pairs = zip(labels.tolist(), groups, strict=True)
    return np.flatnonzero([pair in drawn for pair in pairs])


def probe_budgets(
    data: Mapping[str, Labelled], groups: Sequence[str], features: str, book: ScoreBook
) -> dict[str, BudgetScores]:
    """Fit and test the probe of every budget and draw; add the scores to the book.

    The spread of the draws is not an interval for a difference of models.

    Args:
        data: features and labels by split.
        groups: of the rows of train.
        features: their name in the book.
    """
    summaries = {}
    for budget in budgets(data["train"].labels, groups):
        aurocs, patches = [], []
        with timed(f"{features}, labels of {budget.name}"):
            for number in range(DRAWS):
                rows = draw(data["train"].labels, groups, budget, number)
                labelled = Labelled(data["train"].features[rows], data["train"].labels[rows])
                probe = fit(labelled, data["val"])
                auroc, scores = probe.auroc(data["test"])
                condition = Condition(features, budget=budget.name, draw=number)
                book.add(condition, scores, probe.classes)
                aurocs.append(auroc)
                patches.append(len(rows))
        summaries[budget.name] = BudgetScores(
            groups_per_class=[budget.groups[label] for label in sorted(budget.groups)],
            patches=Range(min=min(patches), max=max(patches)),
            draws=len(aurocs),
            auroc=float(np.mean(aurocs)),
            auroc_std_over_draws=float(np.std(aurocs, ddof=1)),
        )
    return summaries


def _groups_by_class(labels: NDArray[np.int64], groups: Sequence[str]) -> dict[int, set[str]]:
    names: dict[int, set[str]] = defaultdict(set)
    for label, name in zip(labels.tolist(), groups, strict=True):
        if label != NO_LABEL:
            names[label].add(name)
    return dict(names)
