"""The linear probe: what it may look at, and that it is what scikit-learn would do."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import DataError
from eval.measure import logistic
from eval.measure import probe as module
from eval.measure.probe import Labelled, ProbeResult, fit, macro_auroc


def make(classes: int, count: int, seed: int, spread: float = 1.0) -> Labelled:
    """Noisy classes in 12 dimensions of very different scales."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    labels = rng.integers(classes, size=count)
    features = (centres[labels] + spread * rng.normal(size=(count, 12))) * 10.0 ** np.arange(-6, 6)
    return Labelled(features.astype(np.float32), labels)


def probed(train: Labelled, val: Labelled, test: Labelled) -> ProbeResult:
    return fit(train, val).test(test)


def splits(classes: int, spread: float = 2.0) -> tuple[Labelled, Labelled, Labelled]:
    sizes = ((150, 1), (80, 2), (90, 3))
    train, val, test = (make(classes, n, seed, spread) for n, seed in sizes)
    return train, val, test


@pytest.mark.parametrize("classes", [2, 4])
def test_it_is_the_plain_scikit_learn_pipeline(classes: int) -> None:
    train, val, test = splits(classes)
    result = probed(train, val, test)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=result.setting, max_iter=5000))
    plain.fit(train.features.astype(np.float64), train.labels)
    scores = plain.predict_proba(test.features)
    auroc = (
        roc_auc_score(test.labels, scores[:, 1])
        if classes == 2
        else roc_auc_score(test.labels, scores, multi_class="ovr", average="macro")
    )
    predicted = plain.predict(test.features)
    assert result.auroc == pytest.approx(auroc, abs=1e-6)
    assert result.accuracy == pytest.approx((predicted == test.labels).mean())
    expected = balanced_accuracy_score(test.labels, predicted)
    assert result.balanced_accuracy == pytest.approx(expected)
    assert result.converged
    assert (result.n_train, result.n_val, result.n_test, result.n_classes) == (150, 80, 90, classes)


@pytest.mark.parametrize(("classes", "count"), [(2, 150), (4, 150), (2, 40), (5, 40)])
def test_every_fit_is_the_minimum_that_scikit_learn_finds(classes: int, count: int) -> None:
    """With more samples than features, and with fewer, correlated and constant ones among them."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, 60)) @ rng.normal(size=(60, 60)) * 10.0 ** -np.arange(0, 6, 0.1)
    x = StandardScaler().fit_transform(np.hstack([noise, noise[:, :5], np.ones((count, 1))]))
    labels = 3 * rng.integers(classes, size=count)
    grid = module.PROBES["logistic"].grid
    for c, (fitted, converged) in zip(grid, logistic.fit_path(x, labels, grid), strict=True):
        plain = LogisticRegression(C=c, max_iter=100_000, tol=1e-9).fit(x, labels)
        assert converged and c == fitted.C
        np.testing.assert_array_equal(fitted.classes_, plain.classes_)
        np.testing.assert_allclose(fitted.predict_proba(x), plain.predict_proba(x), atol=1e-4)


def test_c_maximises_val_and_never_sees_test() -> None:
    train, val, test = splits(3)
    result = probed(train, val, test)
    by_c = {}
    for c in module.PROBES["logistic"].grid:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
        model.fit(train.features.astype(np.float64), train.labels)
        by_c[c] = macro_auroc(model.predict_proba(val.features), model.classes_, val.labels)
    assert result.val_auroc == pytest.approx(max(by_c.values()), abs=1e-6)
    assert by_c[result.setting] == pytest.approx(max(by_c.values()), abs=1e-6)
    shuffled = np.random.default_rng(0).permutation(test.labels)
    other = probed(train, val, Labelled(test.features, shuffled))
    assert (other.setting, other.val_auroc) == (result.setting, result.val_auroc)
    assert other.accuracy != result.accuracy


def test_ties_go_to_the_better_accuracy_then_to_the_smaller_c() -> None:
    train, val, test = splits(2, spread=0.01)
    result = probed(train, val, test)
    accuracies = []
    for c in module.PROBES["logistic"].grid:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
        model.fit(train.features.astype(np.float64), train.labels)
        accuracies.append(balanced_accuracy_score(val.labels, model.predict(val.features)))
    assert result.setting == module.PROBES["logistic"].grid[int(np.argmax(accuracies))]
    assert (result.val_auroc, result.auroc, result.accuracy) == (1.0, 1.0, 1.0)


def test_rows_without_a_label_are_left_out() -> None:
    train, val, test = splits(3)

    def with_unlabelled(split: Labelled) -> Labelled:
        extra = np.full((20, 12), 1e6, np.float32)
        return Labelled(
            np.concatenate([extra, split.features]),
            np.concatenate([np.full(20, -1), split.labels]),
        )

    assert probed(*map(with_unlabelled, (train, val, test))) == probed(train, val, test)
    probe = fit(train, val)
    auroc, scores = probe.auroc(with_unlabelled(test))  # of label budgets and of robustness
    assert auroc == probe.auroc(test)[0] == probe.test(test).auroc
    assert len(scores) == 20 + len(test.labels)  # scores.parquet has a row per patch


def test_the_macro_average_runs_over_the_classes_of_test() -> None:
    train, val, test = splits(4)
    present = test.labels != 2
    result = probed(train, val, Labelled(test.features[present], test.labels[present]))
    assert result.n_classes == 3
    assert np.isfinite([result.auroc, result.balanced_accuracy]).all()
    scores = np.random.default_rng(0).random((60, 2))
    labels = np.repeat([0, 1, 2], 20)
    areas = [roc_auc_score(labels == c, scores[:, c]) for c in (0, 1)]
    unseen = macro_auroc(scores, np.array([0, 1]), labels)  # no column for class 2: 0.5
    assert unseen == pytest.approx((sum(areas) + 0.5) / 3)


def broken(split: Labelled, labels: NDArray[np.int64] | None, value: float | None) -> Labelled:
    features = split.features.copy()
    if value is not None:
        features[3, 3] = value
    return Labelled(features, split.labels if labels is None else labels)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("label", "value", "message"),
    [(-1, None, "no labelled"), (1, None, "single class"), (None, np.nan, "finite")],
)
def test_what_cannot_be_probed_is_refused_by_name(
    place: int, label: int | None, value: float | None, message: str
) -> None:
    three = list(splits(2))
    labels = None if label is None else np.full_like(three[place].labels, label)
    three[place] = broken(three[place], labels, value)
    name = ("train", "val", "test")[place]
    with pytest.raises(DataError, match=rf"{name}.*{message}|{message}.*{name}"):
        probed(*three)


def test_a_solver_that_stops_early_is_recorded_without_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    three = splits(3)
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = probed(*three)
    assert not stopped.converged
    monkeypatch.undo()
    assert probed(*three).converged
    assert replace(stopped, converged=True) != probed(*three)


@pytest.mark.parametrize("decimals", [1, 3, 15])
def test_the_area_is_that_of_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(decimals)  # one decimal: most scores are tied
    for count in (7, 60, 400):
        labels = rng.permutation(np.arange(count) % 4)
        scores = np.round(rng.random((count, 4)), decimals)
        expected = [roc_auc_score(labels == c, scores[:, c]) for c in range(4)]
        assert macro_auroc(scores, np.arange(4), labels) == pytest.approx(np.mean(expected), 1e-14)
    with pytest.raises(ValueError, match="two classes, and finite"):
        macro_auroc(scores, np.arange(4), np.zeros(400, np.int64))
