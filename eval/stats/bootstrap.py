"""Intervals of test metrics: groups resampled within class, crossed with the effect of seeds.

A replicate is the estimate plus independently drawn deviations:

- groups: in each stratum of n groups, n - 1 are drawn with replacement and weighted n / (n - 1)
  (Rao and Wu 1988: the variance is unbiased at any n); one draw serves all arms, seeds, conditions;
- seeds, and draws of the labelled subset where there are several: a normal deviate with the
  variance of their mean, since three to five values hold no shape to resample.

The deviations are then stretched, rank by rank, from normal quantiles to those of t with
Satterthwaite's degrees of freedom. docs/statistics.md has the coverage of this and of alternatives.

Shapes: S seeds, D draws of the labelled subset, G groups, R replicates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.errors import DataError
from eval.stats.grouping import MIN_GROUPS, Conditions, Grouped, ScoredSet, grouped
from eval.stats.weighted import CHUNK, METRICS, Array, Codes, Term, macro

TAILS = (0.025, 0.975)  # of a 95 % interval


@dataclass(frozen=True)
class Resampling:
    """How to resample."""

    replicates: int = 10_000
    seed: int = 0  # equal seeds draw equal groups, for every arm and contrast
    unit: str = "groups"  # what a group is called: "source images", "patients"
    classes: tuple[str, ...] = ()  # their names in `Interval.resampled`; else "class 0", ...


DEFAULT = Resampling()


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; None where nothing could be resampled."""

    metric: str
    estimate: float  # mean over seeds, draws, conditions and test sets
    low: float | None
    high: float | None
    standard_error: float | None
    degrees_of_freedom: float | None
    resampled: str  # in words
    groups: tuple[dict[int, int], ...]  # of each test set: class to groups with patches of it
    seeds: int
    draws: int
    replicates: int  # under which the metric is defined
    seed: int

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


class Resampled(NamedTuple):
    interval: Interval
    replicates: Array | None  # (R,) ascending; None without an interval


class _Effect(NamedTuple):
    variance: float
    spare: int  # degrees of freedom


class _Spread(NamedTuple):
    """Deviations (R,) ascending, their standard error and degrees of freedom."""

    deviations: Array
    standard_error: float
    degrees_of_freedom: float


def interval(
    scores: Conditions,
    labels: NDArray[np.integer],
    groups: NDArray[np.generic],
    *,
    metric: str = "auroc",
    strata: NDArray[np.generic] | None = None,
    resampling: Resampling = DEFAULT,
) -> Interval:
    """Estimate a metric of one arm on one test set, with its interval.

    Shapes are as in `ScoredSet`, errors as in `resample`.
    """
    test = ScoredSet(labels, groups, {"arm": scores}, strata)
    return resample([test], {"arm": 1.0}, metric, resampling).interval


def resample(
    tests: Sequence[ScoredSet],
    coefficients: Mapping[str, float],
    metric: str = "auroc",
    resampling: Resampling = DEFAULT,
) -> Resampled:
    """Resample the sum over arms of coefficient * metric, averaged over disjoint test sets.

    Raises:
        DataError: an unknown metric, or a test set that `eval.stats.grouping.grouped` refuses.
    """
    if metric not in METRICS:
        raise DataError(f"the metric is {metric!r}, expected one of {', '.join(sorted(METRICS))}")
    sets = [grouped(test, coefficients, metric) for test in tests]
    terms = [METRICS[metric](of_set.sample) for of_set in sets]
    plain = [np.mean([term.plain_SD for term in of_set], axis=0) for of_set in terms]
    if len({x.shape for x in plain}) != 1:
        raise DataError("the test sets differ in their number of seeds or draws, or there is none")
    plain_SD = np.mean(plain, axis=0)
    spread = _spread(sets, terms, plain_SD, resampling)
    replicates, ends = None, (None, None)
    if spread is not None:
        replicates = plain_SD.mean() + spread.deviations
        worst = sum(min(c, 0.0) for c in coefficients.values())
        best = sum(max(c, 0.0) for c in coefficients.values())
        ends = np.clip(np.quantile(replicates, TAILS), worst, best).tolist()
    estimated = Interval(
        metric=metric,
        estimate=float(plain_SD.mean()),
        low=ends[0],
        high=ends[1],
        standard_error=spread.standard_error if spread else None,
        degrees_of_freedom=spread.degrees_of_freedom if spread else None,
        resampled=_words(sets, plain_SD, resampling),
        groups=tuple(of_set.groups for of_set in sets),
        seeds=plain_SD.shape[0],
        draws=plain_SD.shape[1],
        replicates=0 if replicates is None else len(replicates),
        seed=resampling.seed,
    )
    return Resampled(estimated, replicates)


def _spread(
    sets: Sequence[Grouped],
    terms: Sequence[Sequence[Term]],
    plain_SD: Array,
    resampling: Resampling,
) -> _Spread | None:
    """Spread by groups, seeds and draws, each where it can be had; None where none can."""
    first, *others = np.random.SeedSequence(resampling.seed).spawn(1 + len(sets))
    normal = np.random.default_rng(first)
    deviations, effects = np.zeros(resampling.replicates), []
    if not any(of_set.shortage() for of_set in sets):
        for of_set, its_terms, sequence in zip(sets, terms, others, strict=True):
            rng = np.random.default_rng(sequence)
            by_groups, its_effects = _of_groups(
                of_set.strata_G, its_terms, resampling.replicates, rng
            )
            deviations += by_groups / len(sets)
            effects += [_Effect(v / len(sets) ** 2, spare) for v, spare in its_effects]
    deviations = deviations[np.isfinite(deviations)]
    for means in (plain_SD.mean(1), plain_SD.mean(0)):
        if len(means) > 1:
            effects.append(_Effect(float(means.var(ddof=1)) / len(means), len(means) - 1))
            deviations += np.sqrt(effects[-1].variance) * normal.standard_normal(len(deviations))
    if not effects:
        return None
    variance = sum(effect.variance for effect in effects)
    uncertainty = sum(effect.variance**2 / effect.spare for effect in effects)
    freedom = variance**2 / uncertainty if uncertainty else float("inf")  # Satterthwaite
    # stretched: each is multiplied by the ratio of t to normal quantile at its rank
    share = (np.arange(len(deviations)) + 0.5) / len(deviations)
    quantiles = stats.norm.ppf(share)
    ratio = np.ones_like(share)  # the median of an odd number, where the ratio is 0 / 0
    np.divide(stats.t.ppf(share, freedom), quantiles, out=ratio, where=quantiles != 0)
    stretched = np.sort(np.sort(deviations) * ratio)
    return _Spread(stretched, float(np.sqrt(variance)), freedom)


def _of_groups(
    strata_G: Codes, terms: Sequence[Term], replicates: int, rng: np.random.Generator
) -> tuple[Array, list[_Effect]]:
    """Draw deviations (R,) of the metric under resampled groups; also the effect of each stratum.

    The variance of the deviations is divided among strata by their covariances with the weights.
    """
    plain = np.mean([term.plain_SD.mean() for term in terms])
    pieces, moment_G = [], np.zeros(len(strata_G))
    for w_RG in _weights(strata_G, replicates, rng):
        pieces.append(macro(terms, w_RG) - plain)
        moment_G += np.nan_to_num(pieces[-1]) @ (w_RG - 1)
    deviations = np.concatenate(pieces)
    _, stratum_of, sizes = np.unique(strata_G, return_inverse=True, return_counts=True)
    shares = np.bincount(stratum_of, moment_G**2)
    shares *= np.nanvar(deviations) / max(shares.sum(), np.finfo(float).tiny)
    effects = [_Effect(float(v), int(n) - 1) for v, n in zip(shares, sizes, strict=True)]
    return deviations, effects


def _weights(strata_G: Codes, replicates: int, rng: np.random.Generator) -> Iterator[Array]:
    """Draw weights (rows, G) of the groups, `replicates` rows in all: see the module's text."""
    rows = max(1, CHUNK // len(strata_G))
    for start in range(0, replicates, rows):
        count = min(rows, replicates - start)
        w_RG = np.empty((count, len(strata_G)))
        for stratum in np.unique(strata_G):
            (members,) = np.nonzero(strata_G == stratum)
            n = len(members)
            cells = rng.integers(n, size=(count, n - 1)) + n * np.arange(count)[:, None]
            drawn = np.bincount(cells.ravel(), minlength=count * n).reshape(count, n)
            w_RG[:, members] = drawn * (n / (n - 1))
        yield w_RG


def _words(sets: Sequence[Grouped], plain_SD: Array, resampling: Resampling) -> str:
    """State what was resampled, and what was not and why."""
    unit, names = resampling.unit, dict(enumerate(resampling.classes))
    shortage = "; ".join(filter(None, (of_set.shortage(resampling.classes) for of_set in sets)))
    drawn = []
    for of_set in sets:
        by_class = ", ".join(f"{names.get(c, f'class {c}')}: {n}" for c, n in of_set.groups.items())
        mixed = f"; {of_set.mixed} hold several classes" if of_set.mixed else ""
        count, within = len(of_set.strata_G), of_set.stratified_by
        drawn.append(f"{count} {unit} of {of_set.name} within {within} ({by_class}{mixed})")
    phrases = [] if shortage else [" and ".join(drawn)]
    factors = zip(plain_SD.shape, ("seeds", "draws of the labelled subset"), strict=True)
    effects = " and ".join(f"{count} {name}" for count, name in factors if count > 1)
    if effects:
        phrases.append(f"the effect of {effects}")
    text = " crossed with ".join(phrases) or "nothing was resampled"
    if shortage:
        text += f"; no {unit} were resampled: {shortage}, fewer than {MIN_GROUPS}"
    if plain_SD.shape[0] == 1:
        text += "; seeds were not resampled: there is one"
    return text
