"""Contrasts, verdicts and Holm's correction; intervals cover differences that are known."""

import json
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from common.errors import DataError
from eval.stats.bootstrap import Resampling, interval
from eval.stats.contrasts import (
    Contrast,
    Question,
    compare,
    compare_over,
    holm,
    judge,
    non_inferiority,
    p_value,
    superiority,
)
from eval.stats.grouping import ScoredSet
from tests.helpers.bootstrap_simulation import (
    FEW,
    World,
    coverage,
    numbers,
    scored_groups,
    textbook_coverage,
)


def test_contrasts_are_paired() -> None:
    scores, labels, groups = scored_groups(2, 24)
    better = scores + 0.3 * np.eye(2)[labels]
    resampling = Resampling(replicates=20_000)
    forward = compare({"better": better, "worse": scores}, labels, groups, resampling=resampling)
    back = compare({"worse": scores, "better": better}, labels, groups, resampling=resampling)
    ours, turned = numbers(forward.difference), numbers(back.difference)
    assert ours[0] == -turned[0] and ours[3:] == pytest.approx(turned[3:])
    assert ours[1:3] == pytest.approx([-turned[2], -turned[1]], abs=0.1 * ours[3])
    assert forward.first == "better" and forward.p == pytest.approx(back.p, abs=0.002)
    assert ours[3] < 0.5 * numbers(interval(better, labels, groups, resampling=FEW))[3]
    equal = compare({"a": scores, "b": 2 * scores + 1}, labels, groups, resampling=FEW)
    assert (equal.difference.low, equal.difference.high, equal.p) == (0, 0, 1)
    assert equal.detectable == 0 and non_inferiority(equal.difference) == "non-inferior"
    assert json.loads(json.dumps(asdict(forward)))["difference"]["seeds"] == 3


def between(low: float | None, high: float | None, p: float | None = 0.01) -> Contrast:
    scores, labels, groups = scored_groups(2, 24)
    contrast = compare({"a": scores, "b": scores}, labels, groups, resampling=FEW)
    return replace(contrast, difference=replace(contrast.difference, low=low, high=high), p=p)


@pytest.mark.parametrize(
    ("low", "high", "word", "second"),
    [
        (0.001, 0.02, "superior", "holds"),
        (-0.004, 0.02, "non-inferior", "undecided"),
        (-0.004, -0.001, "non-inferior", "undecided"),  # worse, by less than the margin
        (-0.005, 0.02, "undecided", "undecided"),
        (-0.02, -0.001, "undecided", "undecided"),
        (-0.02, -0.006, "inferior", "undecided"),
        (None, None, "undecided", "undecided"),
    ],
)
def test_the_verdict_is_where_the_interval_lies(
    low: float | None, high: float | None, word: str, second: str
) -> None:
    contrast = between(low, high)
    assert non_inferiority(contrast.difference) == word
    assert superiority(contrast.difference) == second


def test_a_family_is_judged_together() -> None:
    """Each of four is significant alone; Holm keeps those that remain so."""
    p = {"h1": 0.03, "h1 k=2": 0.001, "h2": 0.012, "h3": None}
    questions: dict[str, Question] = dict.fromkeys(p, "superiority")
    questions["h1"] = "non-inferiority"
    contrasts = {name: between(0.001, 0.02, value) for name, value in p.items()}
    contrasts["h3"] = between(None, None, None)
    verdicts = judge(contrasts, questions)
    assert {name: v.word for name, v in verdicts.items()} == {
        "h1": "non-inferior",
        "h1 k=2": "holds",
        "h2": "holds",
        "h3": "undecided",
    }
    assert [v.p_holm for v in verdicts.values()] == pytest.approx([0.06, 0.004, 0.036, 1.0])


def test_holm_is_the_step_down_procedure() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = dict(enumerate(rng.random(6) ** 3))
        adjusted = holm({str(k): v for k, v in p.items()})
        for alpha in (0.01, 0.05, 0.2, 0.7):
            rejected: set[str] = set()
            for step, name in enumerate(sorted(p, key=p.__getitem__)):
                if p[name] > alpha / (6 - step):
                    break
                rejected.add(str(name))
            assert {name for name, value in adjusted.items() if value <= alpha} == rejected


def test_the_p_value_and_the_interval_agree() -> None:
    """p crosses 0.05 where 0 leaves the interval, and never falls below 2 / (R + 1)."""
    assert p_value(np.ones(999)) == 2 / 1000
    assert p_value(np.zeros(999)) == 1
    pairs = []
    for shift in np.linspace(-0.2, 0.3, 26):
        scores, labels, groups = scored_groups(2, 24)
        arms = {"a": scores + shift * np.eye(2)[labels], "b": scored_groups(2, 24, 1)[0]}
        contrast = compare(arms, labels, groups, resampling=Resampling(1999))
        low, high = contrast.difference.low, contrast.difference.high
        assert low is not None and high is not None and contrast.p is not None
        assert (low > 0 or high < 0) == (contrast.p <= 0.05) or abs(contrast.p - 0.05) < 2e-3
        pairs.append((contrast.difference.estimate, contrast.p))
    above = [p for estimate, p in pairs if estimate > 0]
    assert all(b <= a + 0.02 for a, b in pairwise(above)) and min(above) < 0.05


def test_a_contrast_is_between_two_arms() -> None:
    scores, labels, groups = scored_groups(2, 24)
    with pytest.raises(DataError, match=r"two arms, found \['a'\]"):
        compare({"a": scores}, labels, groups)
    sets = [ScoredSet(labels, groups, {"a": scores, b: scores}) for b in ("b", "c")]
    with pytest.raises(DataError, match="two arms"):
        compare_over(sets)


# Binomial tolerances: 3 standard errors below 95 %.


@pytest.mark.parametrize("world", [World((10, 10), 3, seed=0.35), World((20, 20), 5)])
def test_intervals_cover_a_known_difference(world: World) -> None:
    for difference in (0.0, 0.05):
        covered, _, _ = coverage(world, 150, seed=5, difference=difference)
        assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 150)


def test_the_textbook_bootstrap_of_three_seeds_does_not() -> None:
    world = World((20, 20), 3, group=0.3, seed=0.9)
    assert coverage(world, 150, 6)[0] > 0.9 > 0.87 > max(textbook_coverage(world, 150, 6).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        World((10, 10), 3, seed=0.35),
        World((40, 40), 5, seed=0.35),
        World((10, 80), 3),
        World(group=0.3, seed=0.9),
        World(seeds=1, seed=0.0),
        World(mixed=True, seed=0.35),
    ],
    ids=str,
)
def test_coverage_is_near_95_percent(world: World) -> None:
    covered, _, _ = coverage(world, 400, seed=7)
    assert 0.92 <= covered <= 0.985
