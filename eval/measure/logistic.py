"""Logistic regression with an L2 penalty, over a grid of strengths.

The minima are those of scikit-learn's LogisticRegression (the tests compare them), reached in a
fraction of the iterations: the features are turned to their principal axes, each axis is scaled by
the curvature of the loss along it, and every fit starts at the solution of the stronger penalty.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

TOLERANCE = 1e-5  # largest entry of the gradient, along the scaled axes
MAX_ITERATIONS = 1000
NULL_VARIANCE = 1e-12  # relative to the largest: axes below it hold rounding errors


def fit_path(
    features: NDArray[np.float64], labels: NDArray[np.int64], grid: Sequence[float]
) -> Iterator[tuple[LogisticRegression, bool]]:
    """Fit a classifier per value of C, and say whether it converged.

    Args:
        features: (n, d), columns of mean 0.
        labels: (n,), of two classes or more.
        grid: values of C, the inverse strength of the penalty, ascending.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    shares = np.bincount(targets) / len(targets)
    curvature = float((shares * (1 - shares)).mean())  # of the loss, where nothing is learned yet
    x = torch.from_numpy(features)
    variances, axes = principal_axes(x)
    z, y = x @ axes, torch.from_numpy(targets)
    columns = 1 if len(classes) == 2 else len(classes)  # two classes share one column of logits
    solution = torch.zeros(len(variances) + 1, columns, dtype=x.dtype)  # the last row: intercepts
    intercept = torch.ones(1, dtype=x.dtype)
    for c in grid:
        penalty = 1 / (c * len(x))
        curvatures = torch.cat([curvature * variances + penalty, curvature * intercept])
        problem = _Problem(z, y, curvatures.rsqrt()[:, None], penalty)
        minimum = minimize(
            problem.value_and_gradient,
            (solution / problem.scales).numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": 20},
        )
        solution = problem.unscaled(minimum.x)
        classifier = LogisticRegression(C=c)
        classifier.classes_ = classes
        classifier.coef_ = (axes @ solution[:-1]).T.numpy()
        classifier.intercept_ = solution[-1].numpy()
        yield classifier, bool(minimum.success)


def principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,) along the principal axes (d, r) of columns (n, d) of mean 0."""
    n, d = x.shape
    if n < d:
        squares, left = torch.linalg.eigh(x @ x.T)
        present = squares > NULL_VARIANCE * squares[-1]
        axes = x.T @ left[:, present] / squares[present].sqrt()
    else:
        squares, axes = torch.linalg.eigh(x.T @ x)
        present = squares > NULL_VARIANCE * squares[-1]
        axes = axes[:, present]
    return squares[present] / n, axes


class _Problem:
    """Mean cross-entropy plus half the penalty, as a function of scaled coefficients."""

    def __init__(self, z: Tensor, y: Tensor, scales: Tensor, penalty: float) -> None:
        self.z, self.y, self.scales, self.penalty = z, y, scales, penalty

    def unscaled(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).view(len(self.scales), -1) * self.scales

    def value_and_gradient(self, values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        solution = self.unscaled(values)
        weights, intercepts = solution[:-1], solution[-1]
        logits = torch.addmm(intercepts, self.z, weights)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        log_p = logits.log_softmax(1)
        loss = torch.nn.functional.nll_loss(log_p, self.y)
        value = float(loss + 0.5 * self.penalty * weights.square().sum())
        slopes = log_p.exp()
        slopes[torch.arange(len(slopes)), self.y] -= 1
        slopes = slopes[:, -weights.shape[1] :] / len(slopes)
        by_weight = self.z.T @ slopes + self.penalty * weights
        gradient = torch.cat([by_weight, slopes.sum(0, keepdim=True)]) * self.scales
        return value, gradient.numpy().ravel()
