"""Test metrics as functions of the weights of groups: one pass over the scores serves all weights.

A bootstrap of groups gives group g the weight w_g and each patch the weight of its group. With
M[g, h] the number of pairs (positive of g, negative of h) in which the positive scores higher,
ties counting half, the weighted area under the ROC curve of a class is

    sum_gh w_g w_h M[g, h] / (sum_g w_g pos_g * sum_h w_h neg_h)

The denominator is free of the scores, so M adds up over seeds, draws of the labelled subset,
conditions and arms (with the arms' signs): one matrix per class holds everything.

Shapes: S seeds, D draws, N patches, K columns, G groups, R rows of weights; of a class, P groups
hold positives and Q hold negatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

CHUNK = 2**22  # numbers in any one array: 32 MiB
MAX_PAIRS = 2**20  # P * Q for the quadratic form; above, its projection, linear in the weights


@dataclass(frozen=True)
class Sample:
    """One test set, and the scores whose metrics add up to the quantity of interest."""

    labels_N: Codes
    groups_N: Codes  # 0 .. G - 1
    summands: Sequence[tuple[float, NDArray[np.floating]]]  # (coefficient, scores_SDNK)

    @property
    def classes(self) -> list[int]:
        return np.unique(self.labels_N).tolist()

    def total(self, measure: Callable[[NDArray[np.floating]], "Sums"]) -> tuple["Sums", Array]:
        """Average `measure` of each scores_NK over S and D; also give its first sums (S, D)."""
        plain_SD = np.zeros(self.summands[0][1].shape[:2])
        sums: Sums = ()
        for coefficient, scores_SDNK in self.summands:
            for s, d in np.ndindex(plain_SD.shape):
                measured = measure(scores_SDNK[s, d])
                plain_SD[s, d] += coefficient * measured[0].sum()
                sums = sums or tuple(np.zeros_like(x) for x in measured)
                for x, y in zip(sums, measured, strict=True):
                    x += coefficient * y
        return tuple(x / plain_SD.size for x in sums), plain_SD


Sums = tuple[Array, ...]


@dataclass(frozen=True)
class Share:
    """The term sum_g w_g hits_g / sum_g w_g count_g.

    A metric is a mean of terms. `plain_SD` is the value without resampling, `weighted` (R,) the
    mean over S and D under weights, NaN where they leave it undefined.
    """

    hits_G: Array
    count_G: Array
    plain_SD: Array

    def weighted(self, w_RG: Array) -> Array:
        return _ratio(w_RG @ self.hits_G, w_RG @ self.count_G)


@dataclass(frozen=True)
class Sides:
    """The groups with positives of a class and those with negatives, and how many of each."""

    positive_N: NDArray[np.bool_]
    rows_P: Codes
    row_of: Codes  # of each positive
    pos_P: Array
    columns_Q: Codes
    column_of: Codes  # of each negative
    neg_Q: Array

    @classmethod
    def of(cls, sample: Sample, label: int) -> "Sides":
        positive_N = sample.labels_N == label
        rows, row_of, pos = np.unique(sample.groups_N[positive_N], False, True, True)
        columns, column_of, neg = np.unique(sample.groups_N[~positive_N], False, True, True)
        return cls(positive_N, rows, row_of, _float(pos), columns, column_of, _float(neg))

    def weights(self, w_RG: Array) -> tuple[Array, Array, Array, Array]:
        """Weights of the groups of both sides (R, P), (R, Q), and of all their patches (R,)."""
        a_RP, b_RQ = w_RG[:, self.rows_P], w_RG[:, self.columns_Q]
        return a_RP, b_RQ, a_RP @ self.pos_P, b_RQ @ self.neg_Q


@dataclass(frozen=True)
class Area:
    """The term in the quadratic form of the module's text."""

    wins_PQ: Array
    sides: Sides
    plain_SD: Array

    def weighted(self, w_RG: Array) -> Array:
        a_RP, b_RQ, pos_R, neg_R = self.sides.weights(w_RG)
        return _ratio(np.einsum("rq,rq->r", a_RP @ self.wins_PQ, b_RQ), pos_R * neg_R)


@dataclass(frozen=True)
class ProjectedArea:
    """The area's Hoeffding projection, from the row and column sums of M: for many groups.

    It leaves out the product of the two sides' deviations, of order 1/sqrt(groups) of the error.
    """

    row_P: Array
    column_Q: Array
    sides: Sides
    plain_SD: Array

    def weighted(self, w_RG: Array) -> Array:
        a_RP, b_RQ, pos_R, neg_R = self.sides.weights(w_RG)
        of_positives = _ratio(a_RP @ self.row_P, pos_R * self.sides.neg_Q.sum())
        of_negatives = _ratio(b_RQ @ self.column_Q, neg_R * self.sides.pos_P.sum())
        return of_positives + of_negatives - self.plain_SD.mean()


Term = Share | Area | ProjectedArea


def accuracy(sample: Sample) -> list[Term]:
    """Share of patches whose highest score is that of their class."""
    return [_share(sample, np.ones_like(sample.labels_N, bool))]


def balanced_accuracy(sample: Sample) -> list[Term]:
    """Recall of every class present; the metric is their mean."""
    return [_share(sample, sample.labels_N == c) for c in sample.classes]


def auroc(sample: Sample) -> list[Term]:
    """One-vs-rest area of every class present; the metric is their mean, the macro AUROC.

    A class without a column of scores counts 0.5. One column: the plain area of class 1.
    """
    single = sample.summands[0][1].shape[-1] == 1
    return [_area(sample, 1, 0)] if single else [_area(sample, c, c) for c in sample.classes]


METRICS: dict[str, Callable[[Sample], list[Term]]] = {
    "auroc": auroc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
}


def macro(terms: Sequence[Term], w_RG: Array) -> Array:
    """Average (R,) the terms that a row of weights leaves defined; NaN where there is none."""
    values_TR = np.stack([term.weighted(w_RG) for term in terms])
    defined_TR = np.isfinite(values_TR)
    return _ratio(np.where(defined_TR, values_TR, 0.0).sum(0), _float(defined_TR.sum(0)))


def pair_wins(scores_N: NDArray[np.floating], sides: Sides) -> Sums:
    """Count pairs (P, Q) won by positives of each group against negatives of each group.

    Time is proportional to P * negatives; memory is bounded by CHUNK.
    """
    order, low, high = _ranks(scores_N, sides)
    by_column = np.argsort(sides.column_of[order], kind="stable")
    starts = (np.cumsum(sides.neg_Q) - sides.neg_Q).astype(np.int64)
    places = len(order) + 1
    cells = np.concatenate([low, high]) + places * np.concatenate([sides.row_of] * 2)
    wins_PQ, rows = np.empty((len(sides.rows_P), len(starts))), max(1, CHUNK // places)
    for first in range(0, len(wins_PQ), rows):
        last = min(first + rows, len(wins_PQ))
        here = cells[(cells >= first * places) & (cells < last * places)] - first * places
        ends = np.bincount(here, minlength=(last - first) * places).reshape(-1, places)
        wins_PQ[first:last] = np.add.reduceat(_beaten(ends)[:, by_column], starts, axis=1)
    return (wins_PQ,)


def pair_sums(scores_N: NDArray[np.floating], sides: Sides) -> Sums:
    """Compute the row sums (P,) and column sums (Q,) of `pair_wins` without the matrix."""
    order, low, high = _ranks(scores_N, sides)
    beaten = _beaten(np.bincount(np.concatenate([low, high]), minlength=len(order) + 1))
    row_P = np.bincount(sides.row_of, (low + high) / 2, len(sides.rows_P))
    column_Q = np.bincount(sides.column_of[order], beaten, len(sides.columns_Q))
    return _float(row_P), _float(column_Q)


def _ranks(scores_N: NDArray[np.floating], sides: Sides) -> tuple[Codes, Codes, Codes]:
    """Sort negatives; count those below each positive, and those not above it."""
    negatives, positives = scores_N[~sides.positive_N], scores_N[sides.positive_N]
    order = np.argsort(negatives)
    negatives = negatives[order]
    low = np.searchsorted(negatives, positives)
    high = np.searchsorted(negatives, positives, "right")
    return order, low, high


def _beaten(ends: Codes) -> Array:
    """Count positives above each sorted negative (..., n), from the histogram (n + 1) of ranks.

    Each positive is counted twice, at both ends of its rank: that makes ties count half.
    """
    return np.flip(np.cumsum(np.flip(ends, -1), -1), -1)[..., 1:] / 2


def _area(sample: Sample, label: int, column: int) -> Term:
    sides = Sides.of(sample, label)
    exact = len(sides.rows_P) * len(sides.columns_Q) <= MAX_PAIRS
    count = pair_wins if exact else pair_sums

    def measure(scores_NK: NDArray[np.floating]) -> Sums:
        seen = column < scores_NK.shape[1]
        return count(scores_NK[:, column] if seen else np.zeros(len(scores_NK)), sides)

    sums, wins_SD = sample.total(measure)
    plain_SD = wins_SD / (sides.pos_P.sum() * sides.neg_Q.sum())
    if exact:
        return Area(sums[0], sides, plain_SD)
    return ProjectedArea(sums[0], sums[1], sides, plain_SD)


def _share(sample: Sample, among_N: NDArray[np.bool_]) -> Term:
    n_groups = int(sample.groups_N.max()) + 1
    groups, labels = sample.groups_N[among_N], sample.labels_N[among_N]

    def measure(scores_NK: NDArray[np.floating]) -> Sums:
        hit = scores_NK[among_N].argmax(1) == labels
        return (_float(np.bincount(groups, hit, n_groups)),)

    (hits_G,), hits_SD = sample.total(measure)
    return Share(hits_G, _float(np.bincount(groups, None, n_groups)), hits_SD / len(labels))


def _float(counts: NDArray[np.generic]) -> Array:
    return counts.astype(np.float64)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Divide, with NaN where the denominator is zero."""
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)
