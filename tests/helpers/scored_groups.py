"""Scores of groups of patches for the tests of the statistics."""

import numpy as np
from numpy.typing import NDArray

from eval.stats.bootstrap import Interval, Resampling

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
