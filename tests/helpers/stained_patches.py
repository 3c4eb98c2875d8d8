"""Patches whose class is a pattern and whose staining is a choice, for the tests of transfer."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Look = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def as_is(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return pixels


def pale(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Another staining: darker and pinker."""
    return pixels * np.array([0.95, 0.6, 0.75]) + np.array([10, 0, 5])


def stained_patches(
    labels: NDArray[np.int64], rng: np.random.Generator, look: Look
) -> list[Image.Image]:
    """The left half of a patch is lighter than the right, or darker: the mean colour is equal."""
    side = np.where(np.arange(32) < 16, 1.0, -1.0)[None, None, :, None]
    sign = np.where(labels == 1, 1.0, -1.0)[:, None, None, None]
    base = np.array([170.0, 120.0, 160.0]) + rng.normal(0, 4, (len(labels), 1, 1, 3))
    pixels = base + 25 * side * sign + rng.normal(0, 12, (len(labels), 32, 32, 3))
    return [Image.fromarray(p.clip(0, 255).astype(np.uint8)) for p in look(pixels)]
