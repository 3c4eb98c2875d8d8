"""Label budgets, robustness and the scores behind every statistic."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from common.errors import DataError
from eval.measure import budgets, robustness
from eval.measure.budgets import Budget
from eval.measure.probe import PROBES, Labelled, fit
from eval.measure.scores import Condition, ScoreBook, read_scores
from models.config import ModelConfig
from models.vae import build
from pipeline import stain
from pipeline.corruptions import GRADED
from pipeline.pixels import to_float
from shards.codec.png import Pixels


def labelled_groups(
    groups: int, each: int, classes: int = 2
) -> tuple[NDArray[np.int64], list[str]]:
    labels = np.repeat(np.arange(groups) % classes, each)
    return labels, [f"g{i // each}" for i in range(groups * each)]


def test_a_budget_takes_whole_groups_of_every_class() -> None:
    labels, groups = labelled_groups(40, 5)
    budget = Budget("k=2", {0: 2, 1: 2})
    drawn = [budgets.draw(labels, groups, budget, number) for number in range(budgets.DRAWS)]
    for rows in drawn:
        taken = {groups[row] for row in rows}
        assert len(rows) == 5 * len(taken) and len(taken) == 4
        assert np.bincount(labels[rows]).tolist() == [10, 10]
    assert len({tuple(rows) for rows in drawn}) > budgets.DRAWS // 2
    # every group has its turn: 2 of 20 a class in 200 draws each
    counts = np.zeros(40)
    for number in range(200):
        rows = budgets.draw(labels, groups, budget, number)
        counts[np.unique(rows // 5)] += 1
    assert counts.min() >= 5 and counts.max() <= 40


def test_a_draw_depends_on_names_and_not_on_the_order_of_rows() -> None:
    labels, groups = labelled_groups(20, 3)
    order = np.random.default_rng(0).permutation(len(labels))
    budget = Budget("k=1", {0: 1, 1: 1})
    for number in range(5):
        plain = budgets.draw(labels, groups, budget, number)
        mixed = budgets.draw(labels[order], [groups[i] for i in order], budget, number)
        assert sorted(order[mixed]) == sorted(plain)


def test_budgets_that_the_data_do_not_allow_are_left_out() -> None:
    labels, groups = labelled_groups(40, 2)  # 20 groups a class
    assert [b.name for b in budgets.budgets(labels, groups)] == ["k=1", "k=2", "k=5", "5%", "10%"]
    labels, groups = labelled_groups(6, 2)  # 3 a class
    assert [b.name for b in budgets.budgets(labels, groups)] == ["k=1", "k=2"]
    unlabelled = np.full_like(labels, -1)
    assert budgets.budgets(np.concatenate([labels, unlabelled]), [*groups, *groups])[0].groups == {
        0: 1,
        1: 1,
    }


@pytest.mark.parametrize("family", PROBES)
def test_every_probe_separates_what_is_separable(family: str) -> None:
    rng = np.random.default_rng(1)
    centres = 5 * rng.normal(size=(3, 8))

    def split(count: int) -> Labelled:
        labels = rng.integers(3, size=count)
        features = centres[labels] + rng.normal(size=(count, 8))
        return Labelled(features.astype(np.float32), labels)

    probe = fit(split(150), split(60), family)
    result = probe.test(split(60))
    assert result.auroc > 0.99 and result.accuracy > 0.9
    assert probe.setting in PROBES[family].grid
    np.testing.assert_allclose(probe.scores(split(5).features).sum(1), 1, atol=1e-6)


def test_scores_come_back_as_they_were(tmp_path: Path) -> None:
    rows = pa.table({"key": ["s1", "s2"], "label": [0, 2], "group": ["a", "b"]})
    book = ScoreBook(rows, 3)
    book.add(Condition("mean", "logistic"), np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([0, 2]))
    book.add(Condition("mean", budget="k=2", draw=13), np.eye(3)[:2], np.arange(3))
    book.write(tmp_path / "scores.parquet", {"dataset_hash": "x"})
    again, facts = read_scores(tmp_path / "scores.parquet")
    assert again.rows.equals(rows) and again.classes == 3 and facts == {"dataset_hash": "x"}
    assert again.scores.keys() == book.scores.keys()
    for condition, scores in book.scores.items():
        np.testing.assert_array_equal(again.scores[condition], scores)
    assert book.scores[Condition("mean", "logistic")].tolist() == [[0.75, 0, 0.25], [0.5, 0, 0.5]]


@pytest.mark.parametrize(
    ("condition", "column"),
    [
        (Condition("mean"), "mean/logistic/clean/0"),
        (Condition("mean", "knn"), "mean/knn/clean/0"),
        (Condition("mean", budget="k=2", draw=13), "mean/logistic/k=2/13"),
        (Condition("pca384", budget="10%"), "pca384/logistic/10%/0"),
        (Condition("mean", corruption="noise", severity=3), "mean/logistic/noise-3/0"),
        (
            Condition("mean", train="other sites", stain="site"),
            "mean/logistic/train=other sites,stain=site/0",
        ),
    ],
)
def test_conditions_are_columns_and_back(condition: Condition, column: str) -> None:
    assert condition.column == column and Condition.parse(column) == condition


@pytest.mark.parametrize("column", ["mean/logistic/dirty/0", "mean/logistic/clean/x", "mean/clean"])
def test_other_columns_are_no_conditions(column: str) -> None:
    with pytest.raises(ValueError, match=r"dirty|invalid literal|unpack"):
        Condition.parse(column)


@pytest.mark.parametrize("content", [b"", b"PAR1 but no more", None])
def test_scores_that_are_none_are_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.parquet"):
        read_scores(path)


def patches(count: int = 6) -> Pixels:
    rng = np.random.default_rng(0)
    smooth = rng.integers(90, 240, size=(count, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    return (smooth + rng.integers(-10, 10, size=smooth.shape)).astype(np.uint8)


@pytest.mark.parametrize("kind", GRADED)
def test_severities_grow_and_repeat(kind: str) -> None:
    pixels = patches()
    errors = []
    for severity in range(1, 6):
        seen = robustness.corrupted(pixels, kind, severity)
        assert seen.shape == pixels.shape and seen.dtype == np.uint8
        np.testing.assert_array_equal(seen, robustness.corrupted(pixels, kind, severity))
        errors.append(np.square(seen.astype(float) - pixels).mean())
    assert errors == sorted(errors) and errors[0] > 0


def test_curves_are_means_of_what_the_probe_says() -> None:
    asked: list[tuple[str, int]] = []

    def score(kind: str, severity: int, pixels: Pixels) -> float:
        asked.append((kind, severity))
        return severity / 10

    curves = robustness.curves(build(ModelConfig(), 0), patches(2), score, 0.9)
    assert asked == [(kind, s) for kind in GRADED for s in range(1, 6)]
    assert curves.clean == 0.9 and curves.area == pytest.approx(0.3)
    noise = curves.kinds["noise"]
    assert noise.trained and noise.area == pytest.approx(0.3)
    values = [level.input_psnr for level in noise.levels]
    assert values == sorted(values, reverse=True)


def test_stains_are_unmixed_and_mixed_again() -> None:
    x = to_float(torch.from_numpy(patches()).permute(0, 3, 1, 2)).clamp(min=0.05)
    torch.testing.assert_close(stain.render(stain.concentrations(x)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(stain.jitter(x, torch.ones(len(x), 2)), x, atol=1e-5, rtol=0)
    haematoxylin = torch.tensor([[[0.65]], [[0.70]], [[0.29]]])
    pure = 10 ** -(0.4 * haematoxylin / haematoxylin.norm()).expand(1, 3, 2, 2)
    unmixed = stain.concentrations(pure)
    torch.testing.assert_close(unmixed[:, 0], torch.full((1, 2, 2), 0.4), atol=1e-5, rtol=0)
    assert unmixed[:, 1:].abs().max() < 1e-5


def test_normalised_patches_have_the_statistics_of_the_target() -> None:
    rng = torch.Generator().manual_seed(0)
    source = 0.5 + 0.1 * torch.rand(8, 3, 32, 32, generator=rng)
    target = 0.3 + 0.2 * torch.rand(8, 3, 32, 32, generator=rng)
    moved = stain.normalise(source, stain.statistics(source), stain.statistics(target))
    for actual, expected in zip(stain.statistics(moved), stain.statistics(target), strict=True):
        torch.testing.assert_close(actual, expected, atol=0.2, rtol=0.02)  # CIELAB; clipping
    same = stain.normalise(source, stain.statistics(source), stain.statistics(source))
    torch.testing.assert_close(same, source, atol=1e-4, rtol=0)
