"""Probes: small classifiers on frozen features, their one setting selected on val.

Features (n, d) are of any float type. Labels (n,) are class indices; rows of label -1 (none) are
left out.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import DataError
from eval.measure.logistic import fit_path
from shards.schema import NO_LABEL

HIDDEN, EPOCHS = 128, 40  # of the MLP, which stops there by design


class Labelled(NamedTuple):
    """Features (n, d) of a split and their labels (n,)."""

    features: NDArray[np.floating]
    labels: NDArray[np.int64]


# standardised features (n, d), labels and settings to a fitted classifier of scikit-learn per
# setting, and whether it converged
Fit = Callable[
    [NDArray[np.float64], NDArray[np.int64], Sequence[float]], Iterator[tuple[Any, bool]]
]


def each(make: Callable[[float], Any]) -> Fit:
    """Fit the classifier of every setting by itself; where one stops by design is no matter."""

    def fit_each(
        features: NDArray[np.float64], labels: NDArray[np.int64], grid: Sequence[float]
    ) -> Iterator[tuple[Any, bool]]:
        for setting in grid:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier = make(setting).fit(features, labels)
            yield classifier, True

    return fit_each


@dataclass(frozen=True)
class Family:
    """Classifiers on standardised features that differ in one setting."""

    setting: str
    grid: tuple[float, ...]  # from the simplest to the most flexible; ties go to the simplest
    fit: Fit


PROBES: dict[str, Family] = {
    "logistic": Family(  # the primary one; C is the inverse strength of the L2 penalty
        "C",
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        fit_path,
    ),
    "mlp": Family(
        "alpha",
        (100.0, 10.0, 1.0, 0.1),
        each(lambda a: MLPClassifier((HIDDEN,), alpha=a, max_iter=EPOCHS, random_state=0)),
    ),
    "knn": Family(
        "k",
        (200, 50, 20, 5),
        each(lambda k: KNeighborsClassifier(int(k), algorithm="brute")),
    ),
}
PRIMARY_PROBE = "logistic"


@dataclass(frozen=True)
class ProbeResult:
    """Scores on test, in [0, 1], of the probe selected on val."""

    accuracy: float
    balanced_accuracy: float  # mean recall over the classes of test
    auroc: float  # macro one-vs-rest over the classes of test; plain for two classes
    setting: float  # the selected C, alpha or k
    val_auroc: float
    converged: bool  # in every fit of the grid
    n_classes: int  # in test: the macro averages run over them
    n_train: int
    n_val: int
    n_test: int


@dataclass(frozen=True)
class Probe:
    """A fitted classifier, its setting selected on val."""

    model: Pipeline
    setting: float
    val_auroc: float
    converged: bool
    n_train: int
    n_val: int

    @property
    def classes(self) -> NDArray[np.int64]:
        """Classes (K,) of train: the columns of `scores`."""
        return self.model.classes_

    def scores(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predict class probabilities (n, K)."""
        return np.asarray(self.model.predict_proba(features.astype(np.float64)))

    def auroc(self, test: Labelled) -> tuple[float, NDArray[np.float64]]:
        """Compute the macro AUROC on the labelled rows of test; also the scores (n, K) of all."""
        scores, labelled = self.scores(test.features), test.labels != NO_LABEL
        return macro_auroc(scores[labelled], self.classes, test.labels[labelled]), scores

    def test(self, test: Labelled) -> ProbeResult:
        """Score the test split.

        Raises:
            DataError: it is empty or unlabelled, has a single class, or a feature is not finite.
        """
        test = _usable("test", test)
        scores = self.scores(test.features)
        predicted = self.classes[scores.argmax(1)]
        return ProbeResult(
            accuracy=float((predicted == test.labels).mean()),
            balanced_accuracy=_balanced_accuracy(test.labels, predicted),
            auroc=macro_auroc(scores, self.classes, test.labels),
            setting=self.setting,
            val_auroc=self.val_auroc,
            converged=self.converged,
            n_classes=len(np.unique(test.labels)),
            n_train=self.n_train,
            n_val=self.n_val,
            n_test=len(test.labels),
        )


def fit(train: Labelled, val: Labelled, family: str = PRIMARY_PROBE) -> Probe:
    """Fit on train and select the setting on val, by macro AUROC, then by balanced accuracy.

    Args:
        family: a key of PROBES.

    Raises:
        DataError: a split is empty or unlabelled, has a single class, or a feature is not finite.
    """
    train, val = _usable("train", train), _usable("val", val)
    kind, best, best_val, converged = PROBES[family], None, (-1.0, -1.0), True
    grid = kind.grid
    if kind.setting == "k":  # there cannot be more neighbours than samples
        count = len(train.labels)
        grid = tuple(k for k in grid if k <= count) or (float(count),)
    scaler = StandardScaler().fit(train.features.astype(np.float64))
    features, seen = (scaler.transform(s.features.astype(np.float64)) for s in (train, val))
    fits = kind.fit(features, train.labels, grid)
    for setting, (classifier, is_solved) in zip(grid, fits, strict=True):
        converged &= is_solved
        scores = classifier.predict_proba(seen)
        auroc = macro_auroc(scores, classifier.classes_, val.labels)
        accuracy = _balanced_accuracy(val.labels, classifier.classes_[scores.argmax(1)])
        if (auroc, accuracy) > best_val:
            best, best_val = (classifier, setting), (auroc, accuracy)
    assert best is not None
    model = Pipeline([("scaler", scaler), ("classifier", best[0])])
    return Probe(model, best[1], best_val[0], converged, len(train.labels), len(val.labels))


def macro_auroc(
    scores_NK: NDArray[np.floating], classes_K: NDArray[np.int64], labels_N: NDArray[np.int64]
) -> float:
    """Average the one-vs-rest area under the ROC curve over the classes present in `labels_N`.

    A class that the probe never saw has no score and counts 0.5. With two classes this is the
    plain area. Areas are those of Mann and Whitney's U, from ranks in which ties share theirs:
    `roc_auc_score` gives the same and takes most of the time of small probes.

    Raises:
        ValueError: a single class, of which no area is defined, or a score that is not finite.
    """
    classes, counts = np.unique(labels_N, return_counts=True)
    if len(classes) < 2 or not np.isfinite(scores_NK).all():
        raise ValueError("an area under the ROC curve takes two classes, and finite scores")
    columns = {int(c): k for k, c in enumerate(classes_K)}
    ranks_NK = rankdata(scores_NK, axis=0)
    areas = [0.5] * len(classes)
    for i, (c, count) in enumerate(zip(classes.tolist(), counts.tolist(), strict=True)):
        if c in columns:
            below = ranks_NK[labels_N == c, columns[c]].sum() - count * (count + 1) / 2
            areas[i] = below / (count * (len(labels_N) - count))
    return float(np.mean(areas))


def _usable(name: str, split: Labelled) -> Labelled:
    labelled = split.labels != NO_LABEL
    labels, features = split.labels[labelled], split.features[labelled]
    if not len(labels):
        raise DataError(f"the {name} split has no labelled sample: a probe needs labels")
    if len(np.unique(labels)) < 2:
        raise DataError(f"the {name} split has a single class: a probe needs two or more")
    if not np.isfinite(features).all():
        raise DataError(f"the features of the {name} split are not all finite")
    return Labelled(features, labels)


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    with warnings.catch_warnings():
        # a class that is predicted but absent from test is left out of the mean, as it should be
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        return float(balanced_accuracy_score(labels, predicted))
