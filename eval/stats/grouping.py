"""A scored test set: the predictions of arms on it, checked, with groups and strata as codes.

Shapes: S seeds, D draws of the labelled subset, n patches, K classes, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from eval.stats.weighted import Codes, Sample
from shards.schema import NO_LABEL

MIN_GROUPS = 10  # with patches of each class, and in each stratum: fewer are not resampled

Scores = NDArray[np.floating]
Conditions = Scores | Sequence[Scores]


@dataclass(frozen=True)
class ScoredSet:
    """One test set and the scores of every arm on it.

    `scores[arm]` is an array (S, n), the score of class 1 of two; (S, n, K), column k the score
    of class k; or (S, D, n, K) with D draws of the labelled subset. Seeds and draws are paired:
    index s is the same initialisation and data order in every arm. A list or tuple of such arrays
    is a list of conditions (severities), and the metric their mean: the area under the curve.
    """

    labels: NDArray[np.integer]  # (n,); patches of label -1 (none) are left out
    groups: NDArray[np.generic]  # (n,) patient, slide or source image, as strings or codes
    scores: Mapping[str, Conditions]
    # (n,) equal within a group; by default the majority class of the group
    strata: NDArray[np.generic] | None = None
    name: str = "test"


@dataclass(frozen=True)
class Grouped:
    """A sample with the stratum (G,) of each group, and the counts of its groups."""

    name: str
    sample: Sample
    strata_G: Codes
    stratified_by: str  # "class" or "stratum"
    groups: dict[int, int]  # class to the groups with patches of it
    mixed: int  # groups with patches of several classes

    def shortage(self, classes: Sequence[str] = ()) -> str:
        """Reason why the groups cannot be resampled, or "", with the names of the classes."""
        names = dict(enumerate(classes))
        counts = [(count, f"with {names.get(c, f'class {c}')}") for c, count in self.groups.items()]
        sizes = np.unique(self.strata_G, return_counts=True)[1].tolist()
        counts += [(count, f"in a {self.stratified_by}") for count in sizes]
        fewest, where = min(counts, key=lambda pair: pair[0])
        return f"{self.name} has {fewest} {where}" if fewest < MIN_GROUPS else ""


def grouped(test: ScoredSet, coefficients: Mapping[str, float], metric: str) -> Grouped:
    """Check the shapes of a test set and weigh its arms.

    Raises:
        DataError: shapes that do not fit, scores that are not finite, fewer than two classes, one
            column of scores with other classes or metrics than it serves, a group in two strata.
    """
    labels = np.asarray(test.labels).astype(np.int64)
    labelled = labels != NO_LABEL
    _refuse(len(np.unique(labels[labelled])) < 2, test, "its labels are of fewer than two classes")
    counts = f"{len(test.groups)} groups for {len(labels)} labels"
    _refuse(len(test.groups) != len(labels), test, counts)
    summands = []
    for arm, coefficient in coefficients.items():
        arms = ", ".join(sorted(test.scores))
        _refuse(arm not in test.scores, test, f"no scores of {arm!r}, only of {arms}")
        of_arm = test.scores[arm]
        conditions = of_arm if isinstance(of_arm, list | tuple) else [of_arm]
        for scores in conditions:
            scores_SDNK = _stacked(test, arm, np.asarray(scores), len(labels))[:, :, labelled]
            summands.append((coefficient / len(conditions), scores_SDNK))
    shapes = {(*x.shape[:2], x.shape[3]) for _, x in summands}
    differ = f"arms or conditions differ in (seeds, draws, classes): {sorted(shapes)}"
    _refuse(len(shapes) > 1, test, differ)
    labels = labels[labelled]
    if summands[0][1].shape[-1] == 1:
        _refuse(metric != "auroc", test, f"{metric} needs a column of scores for every class")
        _refuse(not set(labels) <= {0, 1}, test, "one column of scores serves the labels 0 and 1")
    groups_N = np.unique(np.asarray(test.groups)[labelled], return_inverse=True)[1]
    counts_GK = np.zeros((groups_N.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts_GK, (groups_N, labels), 1)
    present_K = np.flatnonzero(counts_GK.sum(0)).tolist()
    return Grouped(
        name=test.name,
        sample=Sample(labels, groups_N, summands),
        strata_G=counts_GK.argmax(1) if test.strata is None else _strata(test, labelled, groups_N),
        stratified_by="class" if test.strata is None else "stratum",
        groups={c: int((counts_GK[:, c] > 0).sum()) for c in present_K},
        mixed=int(((counts_GK > 0).sum(1) > 1).sum()),
    )


def _stacked(test: ScoredSet, arm: str, scores: Scores, n: int) -> Scores:
    """Bring scores of any accepted shape to (S, D, n, K)."""
    shape = scores.shape
    if scores.ndim == 2:
        scores = scores[:, None, :, None]
    elif scores.ndim == 3:
        scores = scores[:, None]
    fits = scores.ndim == 4 and scores.shape[2] == n and scores.size > 0
    expected = f"(S, {n}), (S, {n}, K) or (S, D, {n}, K); stack the arrays of seeds with np.stack"
    _refuse(not fits, test, f"scores of {arm!r} have shape {shape}, expected {expected}")
    _refuse(not np.isfinite(scores).all(), test, f"scores of {arm!r} are not all finite")
    return scores


def _strata(test: ScoredSet, labelled: NDArray[np.bool_], groups_N: Codes) -> Codes:
    codes_N = np.unique(np.asarray(test.strata)[labelled], return_inverse=True)[1]
    strata_G = np.zeros(groups_N.max() + 1, np.int64)
    strata_G[groups_N] = codes_N
    split = np.flatnonzero(strata_G[groups_N] != codes_N)
    if len(split):
        name = np.asarray(test.groups)[labelled][split[0]]
        _refuse(True, test, f"group {name!r} lies in several strata; a group is drawn whole")
    return strata_G


def _refuse(wrong: bool, test: ScoredSet, message: str) -> None:
    if wrong:
        raise DataError(f"test set {test.name!r}: {message}")
