"""The figures of shuffling against cases whose answer is known."""

import numpy as np
import pytest

from bench.modes import shuffle


def test_no_shuffling_and_reversal() -> None:
    count = 7 * shuffle.BATCH
    plain = np.arange(count)
    assert shuffle.displacement(plain) == 0
    assert shuffle.displacement(plain[::-1]) == pytest.approx(0.5, rel=1e-3)
    assert shuffle.mix(plain) == pytest.approx(6 / 7)  # every batch is of one class
    dealt = plain.reshape(7, -1).T.ravel()  # the classes in turn
    assert shuffle.mix(dealt) < 0.002


def test_a_uniform_permutation() -> None:
    order = np.random.default_rng(0).permutation(200 * shuffle.BATCH)
    assert shuffle.displacement(order) == pytest.approx(1 / 3, rel=0.02)
    # mean absolute error of a binomial share, summed over the classes
    p = 1 / shuffle.CLASSES
    expected = 0.5 * shuffle.CLASSES * np.sqrt(2 / np.pi * p * (1 - p) / shuffle.BATCH)
    assert shuffle.mix(order) == pytest.approx(expected, rel=0.05)
