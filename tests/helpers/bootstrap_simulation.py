"""How often the 95 % intervals cover a known difference of AUROC: the table of docs/statistics.md.

    python -m tests.helpers.bootstrap_simulation [DATA_SETS]

Patch i of group g under arm a, seed s and draw d scores

    y_i (m_a + seed_as + draw_ad) + group_ag + interaction_ags + noise_ai

with every effect normal and half of its variance shared by the two arms. Positives and negatives
lie in different groups, so that with v the variance of group + interaction + noise and u that of
seed + draw the expected AUROC is Phi(m_a / sqrt(2 v + u)), exactly.
"""

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from eval.stats.bootstrap import TAILS, Interval, Resampling
from eval.stats.contrasts import compare
from eval.stats.weighted import Sample, Sides, pair_wins

Array = NDArray[np.float64]
REPLICATES = 1000
SEPARATION = 1.0  # of the second arm: AUROC 0.7 to 0.75


@dataclass(frozen=True)
class World:
    """Standard deviations of the effects, in units of the noise; sizes of the experiment."""

    groups: tuple[int, int] = (20, 20)  # negative, positive
    seeds: int = 5
    draws: int = 1
    group: float = 0.5
    seed: float = 0.02
    draw: float = 0.0
    interaction: float = 0.1
    mixed: bool = False  # every group holds both classes, nine to one


class Data(NamedTuple):
    scores: dict[str, Array]  # (S, D, n, 1)
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]


def data(world: World, gain: float, rng: np.random.Generator) -> Data:
    """One experiment; the first arm separates the classes by `gain` more than the second."""
    n_groups = sum(world.groups)
    groups = np.repeat(np.arange(n_groups), rng.integers(5, 26, n_groups))
    labels = (groups >= world.groups[0]).astype(np.int64)
    if world.mixed:
        labels ^= rng.random(len(labels)) < 0.1
    S, D = world.seeds, world.draws
    seed = world.seed * _paired(rng, S, 1, 1)
    draw = world.draw * _paired(rng, 1, D, 1)
    group = world.group * _paired(rng, 1, 1, n_groups)
    interaction = world.interaction * _paired(rng, S, 1, n_groups)
    noise = _paired(rng, 1, 1, len(labels))
    mean = SEPARATION + np.array([gain, 0.0])[:, None, None, None]
    scores = labels * (mean + seed + draw) + (group + interaction)[..., groups] + noise
    return Data(dict(zip("ab", scores[..., None], strict=True)), labels, groups)


def truth(world: World, gain: float) -> float:
    """The expected difference of AUROC; in mixed worlds known for gain 0 only, and then 0."""
    assert gain == 0 or not world.mixed
    scale = _scale(world)
    return float(norm.cdf((SEPARATION + gain) / scale) - norm.cdf(SEPARATION / scale))


def gain_of(world: World, difference: float) -> float:
    """The gain that makes `truth` this difference."""
    scale = _scale(world)
    return float(scale * norm.ppf(norm.cdf(SEPARATION / scale) + difference) - SEPARATION)


def _scale(world: World) -> float:
    within = 1 + world.group**2 + world.interaction**2
    return float(np.sqrt(2 * within + world.seed**2 + world.draw**2))


def _paired(rng: np.random.Generator, *shape: int) -> Array:
    """(2, *shape) standard normal, with correlation 1/2 between the arms."""
    shared, own = rng.normal(size=shape), rng.normal(size=(2, *shape))
    return (shared + own) / np.sqrt(2)


def bootstrap(experiment: Data) -> tuple[float, float, float]:
    """Low, high and the detectable difference, by this project."""
    contrast = compare(*experiment, resampling=Resampling(replicates=REPLICATES))
    low, high = contrast.difference.low, contrast.difference.high
    assert low is not None and high is not None and contrast.detectable is not None
    return low, high, contrast.detectable


def textbook(experiment: Data, rng: np.random.Generator) -> dict[str, Array]:
    """Intervals (low, high) by resampling groups and seeds together, crossed.

    The percentiles of all n groups and seeds, those of n - 1 of them, and BCa (Efron 1987), whose
    acceleration comes from leaving out one group or seed. No draws of labels, no mixed groups.
    """
    sides = Sides.of(Sample(experiment.labels, experiment.groups, []), 1)
    pairs = zip(experiment.scores["a"], experiment.scores["b"], strict=True)
    wins_SPQ = np.stack(
        [pair_wins(a[0, :, 0], sides)[0] - pair_wins(b[0, :, 0], sides)[0] for a, b in pairs]
    )
    wins_SPQ /= sides.pos_P.sum() * sides.neg_Q.sum()
    replicates = _crossed(wins_SPQ, sides, rng, 0)
    total, pos, neg = wins_SPQ.mean(0).sum(), sides.pos_P, sides.neg_Q
    by_seed_S = wins_SPQ.sum((1, 2))
    without = [
        (total - wins_SPQ.mean(0).sum(1)) / (1 - pos / pos.sum()),
        (total - wins_SPQ.mean(0).sum(0)) / (1 - neg / neg.sum()),
        (by_seed_S.sum() - by_seed_S) / (len(by_seed_S) - 1),
    ]
    influence = np.concatenate([x.mean() - x for x in without])
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    below = np.clip((replicates < total).mean(), 1 / REPLICATES, 1 - 1 / REPLICATES)
    z = norm.ppf(below) + norm.ppf(TAILS)
    return {
        "percentile": np.quantile(replicates, TAILS),
        "n - 1": np.quantile(_crossed(wins_SPQ, sides, rng, 1), TAILS),
        "BCa": np.quantile(replicates, norm.cdf(norm.ppf(below) + z / (1 - acceleration * z))),
    }


def _crossed(wins_SPQ: Array, sides: Sides, rng: np.random.Generator, spare: int) -> Array:
    """(R,) differences with n - `spare` of the n groups on each side, and of the seeds, drawn."""
    c, a, b = (
        rng.multinomial(n - spare, np.full(n, 1 / n), REPLICATES) / (n - spare) * n
        for n in wins_SPQ.shape
    )
    values_SR = np.stack([((a @ wins_PQ) * b).sum(1) for wins_PQ in wins_SPQ])
    pairs = (a @ sides.pos_P) * (b @ sides.neg_Q) / (sides.pos_P.sum() * sides.neg_Q.sum())
    replicates: Array = (c.T * values_SR).mean(0) / pairs
    return replicates


def coverage(
    world: World, count: int, seed: int, difference: float = 0.0
) -> tuple[float, float, float]:
    """Over `count` experiments: coverage, power against 0, mean detectable difference."""
    gain = gain_of(world, difference) if difference else 0.0
    rng = np.random.default_rng(seed)
    low, high, detectable = np.transpose([bootstrap(data(world, gain, rng)) for _ in range(count)])
    true = truth(world, gain)
    covered, significant = (low <= true) & (true <= high), (low > 0) | (high < 0)
    return float(covered.mean()), float(significant.mean()), float(detectable.mean())


def textbook_coverage(world: World, count: int, seed: int) -> dict[str, float]:
    """The coverage of each interval of `textbook` at no difference."""
    rng = np.random.default_rng(seed)
    intervals = [textbook(data(world, 0.0, rng), rng) for _ in range(count)]
    return {
        name: float(np.mean([x[name][0] <= 0 <= x[name][1] for x in intervals]))
        for name in intervals[0]
    }


REACH = 0.2  # of AUROC above that of the second arm
EFFECTS: dict[str, dict[str, Any]] = {
    "groups dominate": {},
    "as much by seeds": {"seed": 0.35},
    "seeds dominate": {"group": 0.3, "seed": 0.9},
    "seed x group": {"group": 0.3, "interaction": 0.5},
}
SIZES = ((10, 10, 3), (20, 20, 3), (20, 20, 5), (40, 40, 5), (10, 80, 5))  # groups, seeds


def main(count: int) -> None:
    print("| groups | seeds | variance | chosen | percentile | n - 1 | BCa | power at MDD |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for *groups, seeds in SIZES:
        for name, effects in EFFECTS.items():
            world = World((groups[0], groups[1]), seeds, **effects)
            ours, _, detectable = coverage(world, count, 1)
            others = textbook_coverage(world, count, 1).values()
            power = np.nan  # where the detectable difference is out of reach
            if detectable < REACH:
                _, power, _ = coverage(world, count, 2, detectable)
            cells = " | ".join(f"{100 * x:.1f}" for x in (ours, *others, power)).replace("nan", "-")
            print(f"| {groups[0]} + {groups[1]} | {seeds} | {name} | {cells} |", flush=True)
    for name, world in {
        "mixed groups": World(mixed=True, seed=0.35),
        "20 draws of labels": World(draws=20, draw=0.35, seed=0.2),
        "one seed, groups only": World(seeds=1, seed=0.0),
    }.items():
        ours, _, _ = coverage(world, count, 3)
        print(f"| 20 + 20 | {world.seeds} | {name} | {100 * ours:.1f} | | | | |", flush=True)


Array = NDArray[np.float64]
FEW = Resampling(replicates=400)


def scored_groups(
    classes: int, groups: int, seed: int = 0, n: int = 240, mixed: bool = False
) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
    """Scores (3, n, classes) with many ties, labels and groups; seeds and groups have effects."""
    rng = np.random.default_rng(seed)
    of_patch = rng.permutation(np.arange(n) % groups)
    labels = rng.integers(classes, size=n) if mixed else of_patch % classes
    signal = np.eye(classes)[labels] * (1 + 0.3 * rng.normal(size=(3, 1, 1)))
    effect = 0.5 * rng.normal(size=(groups, classes))[of_patch]
    return np.round(signal + effect + rng.normal(size=(3, n, classes)), 1), labels, of_patch


def numbers(interval: Interval) -> list[float]:
    """Estimate, low, high, standard error and degrees of freedom."""
    values = [
        interval.estimate,
        interval.low,
        interval.high,
        interval.standard_error,
        interval.degrees_of_freedom,
    ]
    assert None not in values
    return [float(x) for x in values if x is not None]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
