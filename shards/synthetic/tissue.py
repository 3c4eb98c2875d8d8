"""Procedural tissue: for each class, where haematoxylin and eosin bind.

A structure gives where the stain is, not how much: `generate` scales every tile to mean
concentrations that do not depend on the class, so that shape and texture carry the label.
Lengths are pixels, at about half a micron each. Float64 throughout, so that a pixel rounds to
the same grey level whichever vector instructions numpy finds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

Array = npt.NDArray[np.float64]
NOISE_PERIOD = 64  # of the lattice that streaks are cut from


class Structure(NamedTuple):
    haematoxylin: Array  # (S, S), relative concentration, not negative
    eosin: Array  # (S, S), likewise


class Nuclei(NamedTuple):
    distance: Array  # (S, S) signed distance to the outline of a nucleus, negative inside
    which: npt.NDArray[np.intp]  # (S, S) index of that nucleus


def fat(rng: np.random.Generator, size: int) -> Structure:
    """Large empty vacuoles between thin membranes, now and then a flat nucleus in a corner."""
    centres = scatter(rng, size, spacing=rng.uniform(17.0, 25.0), jitter=0.22)
    first, second, third = np.partition(np.hypot(*_offsets(size, centres)), (0, 1, 2), axis=0)[:3]
    thickness = rng.uniform(1.6, 2.6) * (1 + 0.2 * smooth(rng, size, 4.0))
    wall = np.exp(-(((second - first) / thickness) ** 2))
    corner = np.exp(-(((third - first) / (2.2 * thickness)) ** 2))
    membrane = np.minimum(wall + corner, 1)
    nuclei = edge(1.1 - smooth(rng, size, 2.5), 0.15) * membrane
    lumen = np.maximum(0.22 + 0.03 * smooth(rng, size, 6.0), 0)
    return Structure(lumen + 0.4 * membrane + 0.8 * nuclei, lumen + membrane)


def lymphocytes(rng: np.random.Generator, size: int) -> Structure:
    """Small round dense nuclei, closely packed, with hardly any cytoplasm."""
    centres = scatter(rng, size, spacing=rng.uniform(7.5, 9.5), jitter=0.2)
    nuclei = _oval_nuclei(rng, size, centres, small=(2.7, 3.5), slender=1.2)
    inside = edge(nuclei.distance, 0.45)
    strength = rng.uniform(0.8, 1.15, len(centres))[nuclei.which]
    matrix = np.maximum(0.8 + 0.16 * smooth(rng, size, 2.0), 0.05)
    chromatin = np.maximum(1 + 0.12 * smooth(rng, size, 0.9), 0)
    return Structure(0.12 * matrix + strength * inside * chromatin, matrix * (1 - 0.3 * inside))


def mucus(rng: np.random.Generator, size: int) -> Structure:
    """Pools of pale streaks without a common direction, thin threads, a few ghosts of cells."""
    angle = rng.uniform(0, np.pi)
    swirl = streaks(rng, size, angle, width=2.4, length=5.0, waviness=7.0)
    threads = lines(streaks(rng, size, angle, width=7.0, length=14.0, waviness=7.0), 0.7)
    pool = np.maximum(0.7 + 0.15 * swirl + 0.14 * smooth(rng, size, 5.0), 0.05)
    ghosts = edge(1.75 - smooth(rng, size, 1.8), 0.2)
    return Structure(0.6 * pool + 0.25 * threads + 0.5 * ghosts, pool + 0.25 * threads)


def muscle(rng: np.random.Generator, size: int) -> Structure:
    """Broad straight fibres with thin clefts, blunt cigar-shaped nuclei along them."""
    angle = rng.uniform(0, np.pi)
    fibres = streaks(rng, size, angle, rng.uniform(3.2, 4.4), length=60.0, waviness=0.8)
    grain = 0.10 * smooth(rng, size, 0.9)
    sarcoplasm = np.maximum(1 + 0.10 * fibres + grain - 0.5 * lines(fibres, 0.8), 0.05)
    nuclei = _slender_nuclei(rng, size, angle, spacing=rng.uniform(16.0, 24.0), small=1.9)
    return Structure(0.35 * sarcoplasm + 1.1 * nuclei, sarcoplasm * (1 - 0.5 * nuclei))


def stroma(rng: np.random.Generator, size: int) -> Structure:
    """Wavy collagen in bundles of one direction, with a few spindle nuclei along it."""
    angle = rng.uniform(0, np.pi)
    fibres = streaks(rng, size, angle, rng.uniform(1.3, 2.0), length=14.0, waviness=2.5)
    bundles = streaks(rng, size, angle, width=5.0, length=25.0, waviness=2.5)
    collagen = np.maximum(0.8 + 0.28 * fibres + 0.18 * bundles, 0.08)
    nuclei = _slender_nuclei(rng, size, angle, spacing=rng.uniform(17.0, 26.0), small=1.5)
    return Structure(0.35 * collagen + 1.2 * nuclei, collagen * (1 - 0.5 * nuclei))


def tumor(rng: np.random.Generator, size: int) -> Structure:
    """Large crowded vesicular nuclei of uneven size: a dark rim, coarse chromatin."""
    centres = scatter(rng, size, spacing=rng.uniform(11.0, 14.0), jitter=0.3)
    nuclei = _oval_nuclei(rng, size, centres, small=(3.6, 5.2), slender=1.6)
    distance = nuclei.distance + 0.6 * smooth(rng, size, 2.5)
    inside = edge(distance, 0.5)
    rim = np.exp(-((distance + 0.6) ** 2) / 0.8)
    chromatin = np.maximum(0.5 + 0.4 * smooth(rng, size, 1.0), 0)
    strength = rng.uniform(0.75, 1.25, len(centres))[nuclei.which]
    clumps = 0.18 * smooth(rng, size, 1.0) + 0.12 * smooth(rng, size, 4.0)
    cytoplasm = np.maximum(1 + clumps, 0.1)
    haematoxylin = 0.16 * cytoplasm + strength * (inside * chromatin + 0.55 * rim)
    return Structure(haematoxylin, cytoplasm * (1 - 0.35 * inside))


# the order is part of the random numbers of a tile: add new classes at the end
TISSUES: dict[str, Callable[[np.random.Generator, int], Structure]] = {
    "fat": fat,
    "lymphocytes": lymphocytes,
    "mucus": mucus,
    "muscle": muscle,
    "stroma": stroma,
    "tumor": tumor,
}


def smooth(rng: np.random.Generator, size: int, sigma: float) -> Array:
    """Draw a Gaussian random field (S, S) on the torus: zero mean, unit standard deviation."""
    field: Array = gaussian_filter(rng.standard_normal((size, size)), sigma, mode="wrap")
    return (field - field.mean()) / field.std()


def streaks(
    rng: np.random.Generator, size: int, angle: float, width: float, length: float, waviness: float
) -> Array:
    """Draw noise (S, S) stretched along `angle` (radians), bent sideways by `waviness` pixels."""
    y, x = np.mgrid[:size, :size]
    bent = y * np.cos(angle) - x * np.sin(angle) + waviness * smooth(rng, size, 9.0)
    along = x * np.cos(angle) + y * np.sin(angle)
    origin = rng.uniform(0, NOISE_PERIOD, 2)
    points = np.stack([bent / width + origin[0], along / length + origin[1]])
    lattice = rng.standard_normal((NOISE_PERIOD, NOISE_PERIOD))
    field: Array = map_coordinates(lattice, points, order=1, mode="grid-wrap")
    return field / field.std()


def lines(field: Array, width: float) -> Array:
    """Draw the zero level of a field (S, S), about `width` pixels to each side, in [0, 1]."""
    slope = np.hypot(*np.gradient(field))
    drawn: Array = np.exp(-((field / (width * slope + 1e-3)) ** 2))
    return drawn


def edge(distance: Array, softness: float) -> Array:
    """Map signed distance to 1 inside (negative) and 0 outside, over about `softness` pixels."""
    inside: Array = 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))
    return inside


def scatter(rng: np.random.Generator, size: int, spacing: float, jitter: float) -> Array:
    """Draw points (N, 2), y and x: a staggered lattice, about `spacing` apart, then jittered."""
    n = max(2, round(size / spacing))
    row, column = np.mgrid[:n, :n].reshape(2, -1)
    lattice = np.stack([row, column + 0.5 * (row % 2)], axis=1) + rng.uniform(0, 1, 2)
    moved: Array = (lattice + rng.normal(0, jitter, lattice.shape)) * (size / n) % size
    return moved


def ellipses(size: int, centres: Array, radii: Array, angles: Array) -> Nuclei:
    """Unite ellipses on the torus: semi-axes `radii` (N, 2), `angles` (N,) of the first."""
    dy, dx = _offsets(size, centres)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    first, second = radii[:, 0, None, None], radii[:, 1, None, None]
    # single precision is safe here, where only sums and products follow, and four times as fast
    u = _single(dx * (cos / first)) + _single(dy * (sin / first))
    v = _single(dy * (cos / second)) - _single(dx * (sin / second))
    squared = np.square(u, out=u)
    squared += np.square(v, out=v)
    which = squared.argmin(axis=0)
    nearest = np.take_along_axis(squared, which[None], axis=0)[0].astype(np.float64)
    return Nuclei((np.sqrt(nearest) - 1) * radii[:, 1][which], which)


def _oval_nuclei(
    rng: np.random.Generator,
    size: int,
    centres: Array,
    small: tuple[float, float],
    slender: float,
) -> Nuclei:
    """Draw a nucleus per centre: minor semi-axis in `small`, the major up to `slender` times it."""
    minor = rng.uniform(*small, len(centres))
    major = minor * rng.uniform(1, slender, len(centres))
    angles = rng.uniform(0, np.pi, len(centres))
    return ellipses(size, centres, np.stack([major, minor], axis=1), angles)


def _slender_nuclei(
    rng: np.random.Generator, size: int, angle: float, spacing: float, small: float
) -> Array:
    """Draw nuclei along `angle`, with minor semi-axes about `small`, as a mask (S, S) in [0, 1]."""
    centres = scatter(rng, size, spacing, jitter=0.4)
    count = len(centres)
    major, minor = rng.uniform(5.0, 8.5, count), small * rng.uniform(0.8, 1.2, count)
    angles = angle + rng.normal(0, 0.12, count)
    return edge(ellipses(size, centres, np.stack([major, minor], axis=1), angles).distance, 0.35)


def _offsets(size: int, centres: Array) -> tuple[Array, Array]:
    """Compute offsets from all centres to all pixels on the torus: dy (N, S, 1), dx (N, 1, S)."""
    half = size / 2
    offsets = (np.arange(size) - centres[:, :, None] + half) % size - half
    return offsets[:, 0, :, None], offsets[:, 1, None, :]


def _single(values: Array) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)
