"""Linear probes: standardised logistic regression, its C chosen on val, test scored once.

Features (n, d) of any float type; labels (n,) class indices, -1 = none (such rows are left out).
"""

import copy
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shards.schema import NO_LABEL, DataError

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strength of the L2 penalty
MAX_ITERATIONS = 1000


class Labelled(NamedTuple):
    """Features (n, d) of one split and their labels (n,)."""

    features: NDArray[np.floating]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class ProbeResult:
    """Scores on test of the probe selected on val, all in [0, 1]."""

    accuracy: float
    balanced_accuracy: float  # mean recall over the classes of test
    auroc: float  # macro one-vs-rest over the classes of test; two classes: plain
    C: float
    val_auroc: float
    converged: bool  # every fit of the grid
    n_classes: int  # in test: what the macro averages run over
    n_train: int
    n_val: int
    n_test: int


def probe(train: Labelled, val: Labelled, test: Labelled) -> ProbeResult:
    """Fit on train, choose C by macro AUROC on val (ties: the smaller), score test once.

    Raises:
        DataError: a split is empty or unlabelled, has a single class, or a feature is not finite.
    """
    train, val, test = (
        _usable(name, split)
        for name, split in (("train", train), ("val", val), ("test", test))
    )  # fmt: skip
    best, best_auroc, converged = None, -1.0, True
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    for c in C_GRID:
        model.set_params(logisticregression__C=c)
        converged &= _fit(model, train)
        auroc = macro_auroc(scores(model, val.features), model.classes_, val.labels)
        if auroc > best_auroc:
            best, best_auroc = copy.deepcopy(model), auroc
    assert best is not None
    test_scores = scores(best, test.features)
    predicted = best.classes_[test_scores.argmax(1)]
    return ProbeResult(
        accuracy=float((predicted == test.labels).mean()),
        balanced_accuracy=_balanced_accuracy(test.labels, predicted),
        auroc=macro_auroc(test_scores, best.classes_, test.labels),
        C=best.get_params()["logisticregression__C"],
        val_auroc=best_auroc,
        converged=converged,
        n_classes=len(np.unique(test.labels)),
        n_train=len(train.labels),
        n_val=len(val.labels),
        n_test=len(test.labels),
    )


def macro_auroc(
    scores_NK: NDArray[np.floating], classes_K: NDArray[np.int64], labels_N: NDArray[np.int64]
) -> float:
    """Mean one-vs-rest area under the ROC curve over the classes present in `labels_N`.

    A class that the probe never saw has no score and counts 0.5. With two classes this is the
    plain area.
    """
    columns = {int(c): scores_NK[:, k] for k, c in enumerate(classes_K)}
    areas = [
        roc_auc_score(labels_N == c, columns[c]) if c in columns else 0.5
        for c in np.unique(labels_N).tolist()
    ]
    return float(np.mean(areas))


def scores(model: LogisticRegression, features: NDArray[np.floating]) -> NDArray[np.floating]:
    """(n, K) class probabilities."""
    probabilities: NDArray[np.floating] = model.predict_proba(features.astype(np.float64))
    return probabilities


def _fit(model: LogisticRegression, train: Labelled) -> bool:
    """Fit in float64 and say whether the solver converged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.features.astype(np.float64), train.labels)
    return not any(issubclass(w.category, ConvergenceWarning) for w in caught)


def _usable(name: str, split: Labelled) -> Labelled:
    kept = split.labels != NO_LABEL
    labels, features = split.labels[kept], split.features[kept]
    if not len(labels):
        raise DataError(f"the {name} split has no labelled sample: a linear probe needs labels")
    if len(np.unique(labels)) < 2:
        raise DataError(f"the {name} split has a single class: a linear probe needs two or more")
    if not np.isfinite(features).all():
        raise DataError(f"the features of the {name} split are not all finite")
    return Labelled(features, labels)


def _balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    with warnings.catch_warnings():
        # a class that is predicted but absent from test is left out of the mean, as it should be
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        return float(balanced_accuracy_score(labels, predicted))
