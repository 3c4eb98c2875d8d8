"""Makes a small set of H&E-like patches from nothing: `python -m shards.synthetic OUT`.

Structure (`shards.tissue`) -> stain -> scanner. Stain is the law of Beer and Lambert (Ruifrok and
Johnston 2001): RGB = gain * exp(-(c_H * od_H + c_E * od_E)), where the vectors od belong to the
site, jittered by patient, and c are concentrations. Every tile is scaled to mean concentrations
drawn independently of its class, so that colour says little about it.

The layout is that of `shards.pack`'s class folders, OUT/{train,val,test}/<class>/
<site>-<patient>-<image>__y0000_x0000.png: patches of one source image are neighbours in it, and
no patient is in two splits. Everything derives from (seed, split, patient, class, image): a
larger set contains the smaller one of the same seed, byte for byte.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from shards.schema import PATCH, DataError
from shards.tissue import TISSUES, Structure, edge, smooth

SPLITS = ("train", "val", "test")
TILE = 2 * PATCH  # side of a source image
PATCHES = tuple((y, x) for y in range(0, TILE, PATCH) for x in range(0, TILE, PATCH))


@dataclass(frozen=True)
class Site:
    """A laboratory with its scanner."""

    name: str
    haematoxylin: tuple[float, float, float]  # optical density of R, G, B a unit of stain
    eosin: tuple[float, float, float]
    gain: tuple[float, float, float]  # of the background, 1 = white
    gamma: float
    blur: float  # standard deviation in pixels
    noise: float  # standard deviation, 1 = white


SITES = (
    Site("siteA", (0.66, 0.69, 0.30), (0.14, 0.90, 0.41), (0.97, 0.96, 0.97), 1.0, 0.40, 0.010),
    Site("siteB", (0.62, 0.70, 0.34), (0.12, 0.84, 0.53), (0.96, 0.95, 0.93), 1.2, 1.0, 0.035),
)


@dataclass(frozen=True)
class Patient:
    name: str
    site: Site
    stains: npt.NDArray[np.float32]  # (2, 3) optical density of R, G, B: haematoxylin, eosin
    strength: npt.NDArray[np.float32]  # (2,) factor of the concentrations


@dataclass(frozen=True)
class SyntheticConfig:
    """How many patches, all classes together, and how many patients they come from."""

    seed: int = 0
    train: int = 6400
    val: int = 1280
    test: int = 1280
    patients: int = 24  # in each split; sites alternate

    def __post_init__(self) -> None:
        if self.seed < 0 or self.patients < 1 or min(self.train, self.val, self.test) < 0:
            raise ValueError(
                f"{self} has a negative seed or count, or no patient; use seed >= 0, "
                "counts >= 0 and patients >= 1"
            )


def patient(seed: int, split: str, index: int) -> Patient:
    """The `index`-th patient of a split: a site (they alternate) and how tissue stains there."""
    rng = _generator(seed, 0, split, index)
    site = SITES[index % len(SITES)]
    stains = np.array([site.haematoxylin, site.eosin]) * rng.lognormal(0, 0.06, (2, 3))
    return Patient(
        name=f"P{SPLITS.index(split)}{index:03d}",
        site=site,
        stains=stains.astype(np.float32),
        strength=rng.lognormal(0, 0.12, 2).astype(np.float32),
    )


def render_tile(
    seed: int, split: str, index: int, tissue: str, image: int
) -> npt.NDArray[np.uint8]:
    """One source image of patient `index`: (TILE, TILE, 3) uint8 RGB."""
    rng = _generator(seed, 1, split, index, list(TISSUES).index(tissue), image)
    owner = patient(seed, split, index)
    structure = _invaded(rng, TISSUES[tissue](rng, TILE))
    return _scan(rng, _stain(rng, structure, owner), owner.site)


def _invaded(rng: np.random.Generator, tissue: Structure) -> Structure:
    """Half of the tiles hold up to 40 % of some other tissue: no label is pure in a laboratory."""
    share, other = rng.uniform(-0.4, 0.4), list(TISSUES)[rng.integers(len(TISSUES))]
    if share <= 0:
        return tissue
    field = smooth(rng, TILE, 9.0)
    mask = edge(np.quantile(field, 1 - share) - field, 0.08)
    guest = TISSUES[other](rng, TILE)
    return Structure(*(a + mask * (b * a.mean() / b.mean() - a) for a, b in zip(tissue, guest)))


def _stain(
    rng: np.random.Generator, structure: Structure, owner: Patient
) -> npt.NDArray[np.float32]:
    """Transmitted light (S, S, 3) in (0, 1] at mean concentrations that ignore the class."""
    mean = np.array([0.42, 0.40]) * rng.lognormal(0, 0.30, 2) * owner.strength
    maps = np.stack(structure, axis=-1)
    maps = maps * (mean / maps.mean(axis=(0, 1))).astype(np.float32)
    light: npt.NDArray[np.float32] = np.exp(-maps @ owner.stains)
    return light


def _scan(
    rng: np.random.Generator, light: npt.NDArray[np.float32], site: Site
) -> npt.NDArray[np.uint8]:
    """Optics, sensor and file: blur, gain, gamma, noise, 8 bits."""
    blur = site.blur * rng.uniform(0.8, 1.3)
    image = gaussian_filter(light, (blur, blur, 0), mode="nearest")
    image = (image * np.array(site.gain, np.float32)) ** np.float32(site.gamma)
    image = image + site.noise * rng.standard_normal(image.shape, np.float32)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _generator(seed: int, *position: int | str) -> np.random.Generator:
    """Random numbers of one place in the data set, whatever was drawn elsewhere."""
    path = tuple(SPLITS.index(p) if isinstance(p, str) else p for p in position)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=path))
