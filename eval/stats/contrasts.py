"""Contrasts between two arms and their verdicts: superiority, non-inferiority, Holm's correction.

A contrast is the first arm minus the second, paired: the same groups, seeds and draws in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.errors import DataError
from eval.stats.bootstrap import DEFAULT, Interval, Resampling, resample
from eval.stats.grouping import Conditions, ScoredSet
from eval.stats.weighted import Array

ALPHA = 0.05  # two-sided; the intervals of eval.stats.bootstrap have its complement as level
POWER = 0.80
MARGIN = 0.005  # of non-inferiority: half a point of AUROC

Question = Literal["superiority", "non-inferiority"]


@dataclass(frozen=True)
class Contrast:
    """A paired difference between two arms."""

    first: str
    second: str
    difference: Interval  # of the metric, first minus second
    # the difference found with a power of 80 %: (t_0.975 + t_0.80) standard errors
    detectable: float | None
    p: float | None  # two-sided, of no difference


@dataclass(frozen=True)
class Judgement:
    """The answer to the question of a contrast, within its family."""

    contrast: Contrast
    question: Question
    p_holm: float
    word: str  # superiority: holds, undecided; else superior, non-inferior, inferior, undecided


def describe(difference: Interval, p_holm: float | None = None) -> str:
    """Put the estimate, its interval, Holm's p and what was resampled into words."""
    words = [f"Difference {difference.estimate:+.4f}"]
    if difference.low is None or difference.high is None:
        words[0] += ", no interval"
    else:
        words[0] += f", 95 % interval [{difference.low:+.4f}, {difference.high:+.4f}]"
    if p_holm is not None:
        words.append(f"Holm's p {p_holm:.4f}")
    words.append(f"resampled: {difference.resampled}")
    words.append(f"{difference.replicates:,} replicates")
    return "; ".join(words)


def compare(
    scores: Mapping[str, Conditions],
    labels: NDArray[np.integer],
    groups: NDArray[np.generic],
    *,
    metric: str = "auroc",
    strata: NDArray[np.generic] | None = None,
    resampling: Resampling = DEFAULT,
) -> Contrast:
    """Subtract the second arm of `scores` from the first, on one test set.

    Shapes are as in `eval.stats.grouping.ScoredSet`, errors as in `eval.stats.bootstrap.resample`.
    """
    return compare_over(
        [ScoredSet(labels, groups, scores, strata)], metric=metric, resampling=resampling
    )


def compare_over(
    tests: Sequence[ScoredSet], *, metric: str = "auroc", resampling: Resampling = DEFAULT
) -> Contrast:
    """Compare as `compare` does, on the mean over test sets that share no group.

    Raises:
        DataError: not two arms, the same in every set; or as `eval.stats.bootstrap.resample`.
    """
    arms = list(dict.fromkeys(arm for test in tests for arm in test.scores))
    if len(arms) != 2:
        raise DataError(f"a contrast is between two arms, found {arms}: pass the scores of two")
    first, second = arms
    difference, replicates = resample(tests, {first: 1.0, second: -1.0}, metric, resampling)
    if replicates is None:
        return Contrast(first, second, difference, None, None)
    assert difference.standard_error is not None
    quantiles = stats.t.ppf([1 - ALPHA / 2, POWER], difference.degrees_of_freedom)
    detectable = float(quantiles.sum() * difference.standard_error)
    return Contrast(first, second, difference, detectable, p_value(replicates))


def p_value(replicates: Array, null: float = 0.0) -> float:
    """Compute the two-sided p value 2 (1 + k) / (1 + R), at least 2 / (1 + R).

    k counts the replicates on the side of the null value that has fewer; equal ones count on both.
    """
    fewer = min(int((replicates <= null).sum()), int((replicates >= null).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(replicates)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p values of a family by Holm's (1979) method; the order stays."""
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p}


def judge(
    contrasts: Mapping[str, Contrast], questions: Mapping[str, Question], margin: float = MARGIN
) -> dict[str, Judgement]:
    """Judge a family of named contrasts, each by the question that it answers.

    A contrast without an interval stays in the family, with p = 1.
    """
    adjusted = holm({name: 1.0 if c.p is None else c.p for name, c in contrasts.items()})
    judgements = {}
    for name, contrast in contrasts.items():
        question, p_holm = questions[name], adjusted[name]
        if question == "superiority":
            word = superiority(contrast.difference, p_holm)
        else:
            word = non_inferiority(contrast.difference, p_holm, margin)
        judgements[name] = Judgement(contrast, question, p_holm, word)
    return judgements


def superiority(difference: Interval, p_holm: float = 0.0) -> str:
    """Judge superiority: 'holds' where low > 0 and `p_holm` <= 0.05, else 'undecided'."""
    above = difference.low is not None and difference.low > 0 and p_holm <= ALPHA
    return "holds" if above else "undecided"


def non_inferiority(difference: Interval, p_holm: float = 0.0, margin: float = MARGIN) -> str:
    """Judge non-inferiority by where the interval lies (CONSORT extension, Piaggio et al. 2012).

    'superior': as `superiority`. 'non-inferior': the lower bound is above -margin (worse than 0
    perhaps, but by less than the margin). 'inferior': the upper bound is below -margin. Otherwise
    'undecided'. `p_holm` matters for 'superior' only: the margin is judged by the interval alone.
    """
    if difference.low is None or difference.high is None:
        return "undecided"
    if superiority(difference, p_holm) == "holds":
        return "superior"
    if difference.low > -margin:
        return "non-inferior"
    return "inferior" if difference.high < -margin else "undecided"
