"""Procedural tissue: per class, maps of relative haematoxylin and eosin concentration.

A structure says where the stain is, not how much: `shards.synthetic` scales every tile to a mean
concentration that does not depend on the class, so that shape and texture carry the label, as
colour does in no laboratory but one's own. Lengths are pixels, at about half a micron each.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates

Field = npt.NDArray[np.float32]  # (S, S), or (N, 2) for a list of points in (y, x)


class Structure(NamedTuple):
    haematoxylin: Field  # (S, S), relative, not negative
    eosin: Field  # (S, S), relative, not negative


class Nuclei(NamedTuple):
    distance: Field  # (S, S) signed distance to the nearest outline in pixels, negative inside
    which: npt.NDArray[np.intp]  # (S, S) index of that nucleus


def tumor(rng: np.random.Generator, size: int) -> Structure:
    """Large crowded vesicular nuclei: a dark rim, coarse chromatin, nucleoli."""
    centres = scatter(rng, size, spacing=rng.uniform(11.0, 14.0), jitter=0.30)
    nuclei = _oval_nuclei(rng, size, centres, uniform(rng, 3.6, 5.2, len(centres)), slender=1.6)
    distance = nuclei.distance + 0.6 * smooth(rng, size, 2.5)
    inside = edge(distance, 0.5)
    rim = np.exp(-((distance + 0.6) ** 2) / 0.8)
    chromatin = np.clip(0.50 + 0.40 * smooth(rng, size, 1.0), 0, None)
    strength = uniform(rng, 0.75, 1.25, len(centres))[nuclei.which]
    cytoplasm = np.clip(
        1 + 0.18 * smooth(rng, size, 1.0) + 0.12 * smooth(rng, size, 4.0), 0.1, None
    )
    haematoxylin = 0.16 * cytoplasm + strength * (inside * chromatin + 0.55 * rim)
    return Structure(haematoxylin, cytoplasm * (1 - 0.35 * inside))


def stroma(rng: np.random.Generator, size: int) -> Structure:
    """Wavy collagen in bundles of one direction, with a few spindle nuclei along it."""
    angle = rng.uniform(0, np.pi)
    fibres = streaks(rng, size, angle, width=rng.uniform(1.3, 2.0), length=14.0, waviness=2.5)
    bundles = streaks(rng, size, angle, width=5.0, length=25.0, waviness=2.5)
    collagen = np.clip(0.8 + 0.28 * fibres + 0.18 * bundles, 0.08, None)
    spindle = _aligned_nuclei(rng, size, angle, spacing=rng.uniform(17.0, 26.0), small=1.5)
    return Structure(0.35 * collagen + 1.2 * spindle, collagen * (1 - 0.5 * spindle))


def muscle(rng: np.random.Generator, size: int) -> Structure:
    """Smooth muscle: broad straight fibres with thin clefts, blunt cigar-shaped nuclei."""
    angle = rng.uniform(0, np.pi)
    fibres = streaks(rng, size, angle, width=rng.uniform(3.2, 4.4), length=60.0, waviness=0.8)
    clefts = lines(fibres, 0.8)
    grain = smooth(rng, size, 0.9)
    sarcoplasm = np.clip(1 + 0.10 * fibres + 0.10 * grain - 0.5 * clefts, 0.05, None)
    cigar = _aligned_nuclei(rng, size, angle, spacing=rng.uniform(16.0, 24.0), small=1.9)
    return Structure(0.35 * sarcoplasm + 1.1 * cigar, sarcoplasm * (1 - 0.5 * cigar))


def lymphocytes(rng: np.random.Generator, size: int) -> Structure:
    """Small round dense nuclei, closely packed, with hardly any cytoplasm."""
    centres = scatter(rng, size, spacing=rng.uniform(7.5, 9.5), jitter=0.2)
    nuclei = _oval_nuclei(rng, size, centres, uniform(rng, 2.7, 3.5, len(centres)), slender=1.2)
    inside = edge(nuclei.distance, 0.45)
    strength = uniform(rng, 0.8, 1.15, len(centres))[nuclei.which]
    matrix = np.clip(0.8 + 0.16 * smooth(rng, size, 2.0), 0.05, None)
    haematoxylin = 0.12 * matrix + strength * inside * (1 + 0.12 * smooth(rng, size, 0.9))
    return Structure(haematoxylin, matrix * (1 - 0.3 * inside))


def fat(rng: np.random.Generator, size: int) -> Structure:
    """Large empty vacuoles between thin membranes; now and then a flat nucleus at one."""
    seeds = scatter(rng, size, spacing=rng.uniform(17.0, 25.0), jitter=0.22)
    near = np.partition(np.hypot(*_displacement(size, seeds)), (1, 2), axis=0)[:3]
    thickness = rng.uniform(1.6, 2.6) * (1 + 0.2 * smooth(rng, size, 4.0))
    wall = np.exp(-(((near[1] - near[0]) / thickness) ** 2))
    corner = np.exp(-(((near[2] - near[0]) / (2.2 * thickness)) ** 2))
    membrane = np.minimum(wall + corner, 1)
    nuclei = edge(1.1 - smooth(rng, size, 2.5), 0.15) * membrane
    lumen = np.clip(0.22 + 0.03 * smooth(rng, size, 6.0), 0, None)
    return Structure(lumen + 0.4 * membrane + 0.8 * nuclei, lumen + membrane)


def mucus(rng: np.random.Generator, size: int) -> Structure:
    """Pale swirling streaks without a common direction, thin threads, a few ghosts of cells."""
    angle = rng.uniform(0, np.pi)
    swirl = streaks(rng, size, angle, width=2.4, length=5.0, waviness=7.0)
    threads = lines(streaks(rng, size, angle, width=7.0, length=14.0, waviness=7.0), 0.7)
    pool = np.clip(0.7 + 0.15 * swirl + 0.14 * smooth(rng, size, 5.0), 0.05, None)
    ghosts = edge(1.75 - smooth(rng, size, 1.8), 0.2)
    return Structure(0.6 * pool + 0.25 * threads + 0.5 * ghosts, pool + 0.25 * threads)


TISSUES: dict[str, Callable[[np.random.Generator, int], Structure]] = {
    "fat": fat,
    "lymphocytes": lymphocytes,
    "mucus": mucus,
    "muscle": muscle,
    "stroma": stroma,
    "tumor": tumor,
}


def smooth(rng: np.random.Generator, size: int, sigma: float) -> Field:
    """A Gaussian random field (S, S) on the torus, zero mean, unit standard deviation."""
    field = gaussian_filter(rng.standard_normal((size, size), np.float32), sigma, mode="wrap")
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def streaks(
    rng: np.random.Generator, size: int, angle: float, width: float, length: float, waviness: float
) -> Field:
    """Noise (S, S) stretched along `angle` (radians) and bent sideways by `waviness` pixels."""
    y, x = _grid(size)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle) + waviness * smooth(rng, size, 9.0)
    noise = rng.standard_normal((64, 64), np.float32)
    points = np.stack([across / width + rng.uniform(0, 64), along / length + rng.uniform(0, 64)])
    field = map_coordinates(noise, points, order=1, mode="grid-wrap")
    return field / max(float(field.std()), 1e-6)


def lines(field: Field, width: float) -> Field:
    """The zero level of a field (S, S) drawn with a half-width of `width` pixels, in [0, 1]."""
    dy, dx = np.gradient(field)
    drawn: Field = np.exp(-((field / (width * np.hypot(dy, dx) + 1e-3)) ** 2))
    return drawn


def scatter(rng: np.random.Generator, size: int, spacing: float, jitter: float) -> Field:
    """Points (N, 2) on a shifted staggered lattice of about `spacing`, moved by `jitter` of it."""
    n = max(2, round(size / spacing))
    row, column = np.mgrid[:n, :n].reshape(2, -1)
    lattice = np.stack([row, column + 0.5 * (row % 2)], axis=1) + rng.uniform(0, 1, 2)
    moved = lattice + rng.normal(0, jitter, lattice.shape)
    return (moved * (size / n) % size).astype(np.float32)


def ellipses(size: int, centres: Field, radii: Field, angles: Field) -> Nuclei:
    """The union of ellipses on the torus: semi-axes `radii` (N, 2), `angles` (N) of the first."""
    dy, dx = _displacement(size, centres)
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    first, second = radii[:, 0, None, None], radii[:, 1, None, None]
    scaled = np.hypot((dx * cos + dy * sin) / first, (dy * cos - dx * sin) / second)
    distance = (scaled - 1) * second
    which = distance.argmin(axis=0)
    return Nuclei(np.take_along_axis(distance, which[None], axis=0)[0], which)


def edge(distance: Field, softness: float) -> Field:
    """1 inside (negative distance), 0 outside, over about `softness` pixels."""
    inside: Field = 1 / (1 + np.exp(np.clip(distance / softness, -30, 30)))
    return inside


def _oval_nuclei(
    rng: np.random.Generator, size: int, centres: Field, small: Field, slender: float
) -> Nuclei:
    """Nuclei of any direction, semi-axis `small` (N) and up to `slender` times that."""
    long = small * uniform(rng, 1.0, slender, len(centres))
    angles = uniform(rng, 0, np.pi, len(centres))
    return ellipses(size, centres, np.stack([long, small], axis=1), angles)


def _aligned_nuclei(
    rng: np.random.Generator, size: int, angle: float, spacing: float, small: float
) -> Field:
    """Slender nuclei along `angle`, as a mask (S, S) in [0, 1]."""
    centres = scatter(rng, size, spacing, jitter=0.4)
    count = len(centres)
    radii = np.stack([uniform(rng, 5.0, 8.5, count), small * uniform(rng, 0.8, 1.2, count)], axis=1)
    angles = np.float32(angle) + 0.12 * rng.standard_normal(count, np.float32)
    return edge(ellipses(size, centres, radii, angles).distance, 0.35)


def uniform(rng: np.random.Generator, low: float, high: float, count: int) -> Field:
    return rng.uniform(low, high, count).astype(np.float32)


def _grid(size: int) -> tuple[Field, Field]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return y, x


def _displacement(size: int, centres: Field) -> tuple[Field, Field]:
    """From every centre to every pixel, the short way round: dy (N, S, 1), dx (N, 1, S)."""
    pixels = np.arange(size, dtype=np.float32)
    half = size / 2
    dy, dx = ((pixels - centres[:, i, None] + half) % size - half for i in (0, 1))
    return dy[:, :, None], dx[:, None, :]
