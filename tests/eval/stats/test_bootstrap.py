"""Weighted metrics against scikit-learn, intervals against closed forms and invariances."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from common.errors import DataError
from eval.measure.probe import macro_auroc
from eval.stats import weighted
from eval.stats.bootstrap import Resampling, interval, resample
from eval.stats.grouping import ScoredSet
from eval.stats.weighted import METRICS, Sample, Sides, macro, pair_sums, pair_wins
from tests.helpers.bootstrap_simulation import FEW, numbers, scored_groups

Array = NDArray[np.float64]


def reference(metric: str, scores: Array, labels: NDArray[np.int64]) -> float:
    """The metric by scikit-learn, over the classes present."""
    if metric == "auroc":
        areas = [roc_auc_score(labels == c, scores[:, c]) for c in np.unique(labels)]
        return float(np.mean(areas))
    score = {"accuracy": accuracy_score, "balanced_accuracy": balanced_accuracy_score}[metric]
    return float(score(labels, scores.argmax(1)))


@pytest.mark.parametrize("metric", list(METRICS))
@pytest.mark.parametrize(("classes", "mixed"), [(2, False), (2, True), (4, False), (4, True)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_weights_of_groups_are_repeated_rows(metric: str, classes: int, mixed: bool) -> None:
    scores, labels, groups = scored_groups(classes, 12, mixed=mixed)
    terms = METRICS[metric](Sample(labels, groups, [(1.0, scores[:, None])]))
    w_RG = np.random.default_rng(1).integers(0, 4, (20, 12)).astype(float)
    w_RG[0, np.arange(12) % classes == 1] = 0  # pure groups: class 1 is not drawn at all
    for measured, w_G in zip(macro(terms, w_RG), w_RG, strict=True):
        rows = np.repeat(np.arange(len(labels)), w_G[groups].astype(int))
        if len(np.unique(labels[rows])) == 1:
            assert metric != "auroc" or np.isnan(measured)
            continue
        expected = np.mean([reference(metric, s[rows], labels[rows]) for s in scores])
        assert measured == pytest.approx(expected, abs=1e-12)


def test_sums_of_pairs_need_no_matrix() -> None:
    scores, labels, groups = scored_groups(2, 12, mixed=True)
    sides = Sides.of(Sample(labels, groups, []), 1)
    (wins,) = pair_wins(scores[0, :, 0], sides)
    rows, columns = pair_sums(scores[0, :, 0], sides)
    assert (rows == wins.sum(1)).all() and (columns == wins.sum(0)).all()


@pytest.mark.parametrize(("classes", "mixed"), [(2, False), (3, True)])
def test_the_projection_for_many_groups_gives_the_same_interval(
    classes: int, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, labels, groups = scored_groups(classes, 120, n=960, mixed=mixed)
    resampling = Resampling(replicates=2000)
    exact = interval(scores, labels, groups, resampling=resampling)
    monkeypatch.setattr(weighted, "MAX_PAIRS", 0)
    projected = interval(scores, labels, groups, resampling=resampling)
    assert projected.estimate == pytest.approx(exact.estimate, abs=1e-12)
    ends = [(x.low, x.high, x.standard_error) for x in (exact, projected)]
    assert exact.standard_error is not None
    assert ends[1] == pytest.approx(ends[0], abs=0.05 * exact.standard_error)


@pytest.mark.parametrize("columns", [4, 2])
def test_the_estimate_is_the_metric_of_the_probe(columns: int) -> None:
    scores, labels, groups = scored_groups(4, 48)
    scores = scores[..., :columns]  # classes without a column count 0.5 in both
    unlabelled = np.concatenate([labels, np.full(48, -1)])
    padded = np.concatenate([scores, np.full((3, 48, columns), 9.0)], axis=1)
    measured = interval(padded, unlabelled, np.concatenate([groups, np.arange(48)]), resampling=FEW)
    expected = [macro_auroc(s, np.arange(columns), labels) for s in scores]
    assert measured.estimate == pytest.approx(np.mean(expected), abs=1e-12)
    assert measured.groups == ({0: 12, 1: 12, 2: 12, 3: 12},)


def test_one_column_is_the_score_of_class_1() -> None:
    scores, labels, groups = scored_groups(2, 24)
    two = np.stack([-scores[..., 1], scores[..., 1]], -1)
    single = interval(scores[..., 1], labels, groups, resampling=FEW)
    assert numbers(single) == pytest.approx(numbers(interval(two, labels, groups, resampling=FEW)))


def test_group_and_seed_variance_have_their_closed_forms() -> None:
    """Accuracy over groups of one size is a mean: its variance is s^2 / n, at any n."""
    scores, labels, groups = scored_groups(2, 24)
    hit = (scores.argmax(2) == labels).mean(0)
    by_group = np.bincount(groups, hit) / 10
    expected = sum(by_group[c::2].var(ddof=1) / 12 for c in (0, 1)) / 4
    resampling = Resampling(replicates=20_000)
    first = interval(
        scores[:1].repeat(3, 0), labels, groups, metric="accuracy", resampling=resampling
    )
    alone = np.bincount(groups, scores[0].argmax(1) == labels) / 10
    of_groups = sum(alone[c::2].var(ddof=1) / 12 for c in (0, 1)) / 4
    assert first.standard_error == pytest.approx(np.sqrt(of_groups), rel=0.03)
    both = interval(scores, labels, groups, metric="accuracy", resampling=resampling)
    seeds = (scores.argmax(2) == labels).mean(1)
    assert both.standard_error == pytest.approx(np.sqrt(expected + seeds.var(ddof=1) / 3), rel=0.03)
    few = interval(
        scores, labels, labels, metric="accuracy", resampling=resampling
    )  # no group interval
    low, high = stats.t.interval(0.95, 2, seeds.mean(), stats.sem(seeds))
    width = high - low
    assert (few.low, few.high) == pytest.approx((low, min(high, 1.0)), abs=0.05 * width)


def test_conditions_draws_and_sets_see_one_draw_of_groups() -> None:
    scores, labels, groups = scored_groups(3, 36)
    alone = resample([ScoredSet(labels, groups, {"a": scores})], {"a": 1.0}, resampling=FEW)

    def same(other: Any) -> bool:
        again = resample([ScoredSet(labels, groups, {"a": other})], {"a": 1.0}, resampling=FEW)
        assert again.replicates is not None and alone.replicates is not None
        return np.allclose(again.replicates, alone.replicates, atol=1e-12)

    assert same([scores, scores])  # severities
    assert same(scores[:, None].repeat(4, 1))  # draws that agree
    assert not same(scored_groups(3, 36, seed=1)[0])
    shuffled = np.random.default_rng(0).permutation(len(labels))
    moved = interval(scores[:, shuffled], labels[shuffled], groups[shuffled], resampling=FEW)
    assert numbers(moved) == pytest.approx(numbers(alone.interval))
    one_seed = ScoredSet(labels, groups, {"a": scores[:1]})
    of_one, of_four = (numbers(resample([one_seed] * k, {"a": 1.0}).interval) for k in (1, 4))
    assert of_one[3] == pytest.approx(2 * of_four[3], rel=0.05)  # sets are independent
    assert of_one[2] - of_one[1] == pytest.approx(2 * (of_four[2] - of_four[1]), rel=0.1)


@pytest.mark.parametrize(
    ("seeds", "groups", "mixed", "words", "bounded"),
    [
        (
            3,
            24,
            False,
            r"^24 slides of test within class \(class 0: 12, class 1: 12\) crossed with "
            r"the effect of 3 seeds$",
            True,
        ),
        (1, 24, False, r"class 1: 12\); seeds were not resampled: there is one$", True),
        (
            3,
            19,
            False,
            r"^the effect of 3 seeds; no slides were resampled: test has 9 with class "
            r"1, fewer than 10$",
            True,
        ),
        (1, 4, False, r"^nothing was resampled; no slides .* fewer than 10; seeds were not", False),
        (3, 60, True, r"^60 slides .* hold several classes\)", True),
    ],
)
def test_the_words_say_what_was_resampled(
    seeds: int, groups: int, mixed: bool, words: str, bounded: bool
) -> None:
    scores, labels, of_patch = scored_groups(2, groups, mixed=mixed)
    resampling = replace(FEW, unit="slides")
    measured = interval(scores[:seeds], labels, of_patch, resampling=resampling)
    assert (measured.low is not None, measured.replicates) == (bounded, 400 * bounded)
    assert re.search(words, measured.resampled), measured.resampled


def test_strata_can_be_given() -> None:
    """Patients who all hold both classes: drawn together, not by their majority class."""
    scores, labels, groups = scored_groups(2, 30, mixed=True)
    measured = interval(scores, labels, groups, strata=np.zeros(240), resampling=FEW)
    assert measured.resampled.startswith(
        "30 groups of test within stratum (class 0: 30, class 1: 30"
    )
    assert measured.low is not None


def test_draws_of_labels_add_their_effect() -> None:
    scores, labels, groups = scored_groups(2, 24)
    signal = np.eye(2)[labels] * np.linspace(-1, 1, 6)[:, None, None]
    measured = interval(scores[:, None] + signal, labels, groups, resampling=FEW)
    plain = interval(scores, labels, groups, resampling=FEW)
    assert measured.draws == 6 and "3 seeds and 6 draws" in measured.resampled
    of_draws = [interval(scores + x, labels, groups, resampling=FEW).estimate for x in signal]
    expected = np.hypot(numbers(plain)[3], np.std(of_draws, ddof=1) / np.sqrt(6))
    assert numbers(measured)[3] == pytest.approx(expected, rel=0.1)


S, N = 3, 240


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "f1"}, "metric is 'f1', expected one of accuracy, auroc"),
        ({"labels": np.zeros(N, int)}, "fewer than two classes"),
        ({"groups": np.arange(7)}, "7 groups for 240 labels"),
        ({"strata": np.arange(N)}, "several strata"),
        ({"scores": np.zeros((N, 2))}, r"shape \(240, 2\), expected \(S, 240\).*np.stack"),
        ({"scores": [np.zeros((N, 2))] * S}, r"shape \(240, 2\), expected .*np.stack"),
        ({"scores": np.full((S, N, 2), np.nan)}, "not all finite"),
        ({"scores": [np.zeros((S, N, 2)), np.zeros((2, N, 2))]}, "differ in .seeds, draws"),
        ({"scores": np.zeros((S, N)), "metric": "accuracy"}, "column of scores for every class"),
        ({"scores": np.zeros((S, N)), "labels": np.arange(N) % 3}, "serves the labels 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    scores, labels, groups = scored_groups(2, 24)
    arguments: dict[str, Any] = {"scores": scores, "labels": labels, "groups": groups}
    with pytest.raises(DataError, match=message):
        interval(**(arguments | change), resampling=FEW)


def test_sets_that_differ_in_seeds_are_refused() -> None:
    scores, labels, groups = scored_groups(2, 24)
    tests = [ScoredSet(labels, groups, {"a": s}) for s in (scores, scores[:2])]
    with pytest.raises(DataError, match="number of seeds"):
        resample(tests, {"a": 1.0})
