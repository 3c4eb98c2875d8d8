"""Generate H&E-like patches: structure, then stain, then scanner.

Structure comes from `shards.synthetic.tissue`. Stain follows the law of Beer and Lambert (Ruifrok
and Johnston 2001): RGB = 255 exp(-(c_H od_H + c_E od_E)), where the vectors od belong to the site,
jittered by patient, and c are concentrations. Every tile is scaled to mean concentrations drawn
independently of its class: colour and coarse layout say little about the label, so a set this
small still distinguishes representations.

The layout is one folder per class, OUT/{train,val,test}/<class>/<source>__y0000_x0000.png with
<source> = <site>-<patient>-<image>. Patches of one source are neighbours in one tile; no patient
is in two splits. A patch depends on (seed, split, patient, class, image) only, and its PNG holds
the pixels uncompressed: a larger set contains the smaller one of the same seed, byte for byte.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from common.errors import DataError
from shards.codec.png import Pixels, store
from shards.schema import PATCH
from shards.sources.splits import SPLITS
from shards.synthetic.tissue import TISSUES, Array, Structure, edge, smooth

TILE = 2 * PATCH  # side of a source image in pixels
CORNERS = tuple((y, x) for y in range(0, TILE, PATCH) for x in range(0, TILE, PATCH))

MEAN_CONCENTRATION = (0.42, 0.40)  # haematoxylin, eosin: median over tiles
TILE_SPREAD = 0.30  # log standard deviation of the mean concentrations, by tile
PATIENT_SPREAD = 0.12  # the same, by patient
STAIN_SPREAD = 0.06  # log standard deviation of a patient's stain vectors
MAX_GUEST = 0.33  # share of a tile's area taken by another tissue


@dataclass(frozen=True)
class Site:
    """A laboratory and its scanner."""

    name: str
    stains: tuple[tuple[float, float, float], ...]  # optical density of R, G, B per unit of H, of E
    white: tuple[float, float, float]  # RGB of the empty slide in [0, 1]
    gamma: float
    blur: float  # standard deviation of the optics in pixels
    noise: float  # standard deviation of the sensor, 1 = white


SITES = (
    Site("siteA", ((0.66, 0.69, 0.30), (0.14, 0.90, 0.41)), (0.97, 0.96, 0.97), 1.0, 0.4, 0.01),
    Site("siteB", ((0.62, 0.70, 0.34), (0.12, 0.84, 0.53)), (0.96, 0.95, 0.93), 1.2, 0.9, 0.025),
)


@dataclass(frozen=True)
class SyntheticConfig:
    """Size of the set. Counts are patches of all classes together, spread evenly."""

    seed: int = 0
    """Seed of all random draws."""
    train: int = 6400
    """Patches in train."""
    val: int = 1280
    """Patches in val."""
    test: int = 1280
    """Patches in test."""
    patients: int = 24
    """Patients per split, alternating between sites; each has every class if counts allow."""

    def __post_init__(self) -> None:
        counts = (self.train, self.val, self.test)
        if self.seed < 0 or min(counts) < 0 or sum(counts) == 0:
            raise ValueError(f"{self}: expected seed and counts >= 0 and at least one patch")
        if not 1 <= self.patients <= 1000:
            raise ValueError(f"patients is {self.patients}; expected 1 to 1000")


class Patient(NamedTuple):
    name: str
    site: Site
    stains: Array  # (2, 3) optical density of R, G, B per unit of H (row 0) and E (row 1)
    strength: Array  # (2,) factor of the H and E concentrations


class Source(NamedTuple):
    """The patches of a source image that are used."""

    stem: Path  # <split>/<class>/<source>, relative to the set
    patches: Pixels  # (n, 32, 32, 3) RGB, n <= len(CORNERS), in the order of CORNERS


def generate(
    out: Path, config: SyntheticConfig, advance: Callable[[int], None] | None = None
) -> None:
    """Write the whole set into the new folder `out`, which appears complete or not at all.

    Args:
        advance: called with the number of patches written since the last call.

    Raises:
        DataError: `out` exists and is not an empty folder.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; remove it or name another")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        root = Path(temporary, "set")  # only the owner may read the temporary folder itself
        for source in sources(config):
            stem = root / source.stem
            stem.parent.mkdir(parents=True, exist_ok=True)
            for (y, x), data in zip(CORNERS, store(source.patches), strict=False):
                stem.with_name(f"{stem.name}__y{y:04d}_x{x:04d}.png").write_bytes(data)
            if advance is not None:
                advance(len(source.patches))
        root.rename(out)


def sources(config: SyntheticConfig) -> Iterator[Source]:
    """Yield every source image of the set, by split, class and patient."""
    for split in SPLITS:
        total = getattr(config, split)
        for label, tissue in enumerate(TISSUES):
            count = _share(total, len(TISSUES), label)
            for index in range(config.patients):
                quota = _share(count, config.patients, index)
                yield from _patient_sources(config.seed, split, index, tissue, quota)


def patient(seed: int, split: str, index: int) -> Patient:
    """Draw patient `index` of a split: the site, and how tissue stains there."""
    rng = _generator(seed, 0, SPLITS.index(split), index)
    site = SITES[index % len(SITES)]
    stains = np.array(site.stains) * rng.lognormal(0, STAIN_SPREAD, (2, 3))
    strength = rng.lognormal(0, PATIENT_SPREAD, 2)
    return Patient(f"P{SPLITS.index(split)}{index:03d}", site, stains, strength)


def render_tile(seed: int, split: str, index: int, tissue: str, image: int) -> Pixels:
    """Render source image `image` of one tissue of patient `index`: (TILE, TILE, 3) RGB."""
    label = list(TISSUES).index(tissue)
    rng = _generator(seed, 1, SPLITS.index(split), index, label, image)
    owner = patient(seed, split, index)
    structure = _invade(rng, TISSUES[tissue](rng, TILE))
    return _scan(rng, _stain(rng, structure, owner), owner.site)


def _patient_sources(
    seed: int, split: str, index: int, tissue: str, quota: int
) -> Iterator[Source]:
    """Yield the source images with the first `quota` patches of one tissue of one patient."""
    owner = patient(seed, split, index)
    for image in range(-(-quota // len(CORNERS))):
        tile = render_tile(seed, split, index, tissue, image)
        used = CORNERS[: quota - image * len(CORNERS)]
        patches = np.stack([tile[y : y + PATCH, x : x + PATCH] for y, x in used])
        number = image * len(TISSUES) + list(TISSUES).index(tissue)  # unique within the patient
        name = f"{owner.site.name}-{owner.name}-{number:04d}"
        yield Source(Path(split, tissue, name), patches)


def _share(total: int, shares: int, index: int) -> int:
    """Size of share `index` when a total is spread evenly, the first shares being larger by one."""
    return total // shares + (index < total % shares)


def _invade(rng: np.random.Generator, host: Structure) -> Structure:
    """Replace up to a third of every second tile by another tissue: no real label is pure."""
    share = rng.uniform(-MAX_GUEST, MAX_GUEST)
    if share <= 0:
        return host
    guest = list(TISSUES.values())[rng.integers(len(TISSUES))](rng, TILE)
    field = smooth(rng, TILE, 9.0)
    mask = edge(np.quantile(field, 1 - share) - field, 0.08)
    mixed = (a + mask * (b * a.mean() / b.mean() - a) for a, b in zip(host, guest, strict=True))
    return Structure(*mixed)


def _stain(rng: np.random.Generator, structure: Structure, owner: Patient) -> Array:
    """Return the light, (S, S, 3) in (0, 1], at mean concentrations that ignore the class."""
    means = MEAN_CONCENTRATION * rng.lognormal(0, TILE_SPREAD, 2) * owner.strength
    density = np.zeros((*structure.eosin.shape, 3))
    for relative, mean, stain in zip(structure, means, owner.stains, strict=True):
        density += (relative * (mean / relative.mean()))[:, :, None] * stain
    return np.exp(-density)


def _scan(rng: np.random.Generator, light: Array, site: Site) -> Pixels:
    """Apply the scanner: optics, white point, gamma, sensor noise, 8 bits."""
    blur = site.blur * rng.uniform(0.8, 1.3)
    image = gaussian_filter(light, (blur, blur, 0), mode="nearest")
    image = (image * site.white) ** site.gamma + rng.normal(0, site.noise, image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _generator(seed: int, *position: int) -> np.random.Generator:
    """Make the generator of one place in the set, independent of the draws elsewhere."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=position))
