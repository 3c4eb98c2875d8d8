"""Patches for tests: real ones if they are on this machine, random PNG files, stained patterns."""

import io
import os
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from shards.pack.packing import pack
from shards.pack.plan import PackOptions

BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL_DATA = Path(os.environ.get("EQDVAE_REAL_DATA", BESIDE_THE_CHECKOUT))

Look = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def real_archive(name: str) -> Path:
    """The tar of real patches of this name; skips the test where it is absent."""
    path = REAL_DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine; EQDVAE_REAL_DATA names its folder")
    return path


@cache
def real_patches(count: int, archive: str = "colon_7class.tar") -> NDArray[np.uint8]:
    """(count, 32, 32, 3) real H&E patches spread over an archive; skips where it is absent."""
    with tarfile.open(real_archive(archive)) as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".png")]
        spread = members[:: max(1, len(members) // count)][:count]
        blobs = [tar.extractfile(m).read() for m in spread]  # type: ignore[union-attr]
    return np.stack([np.asarray(Image.open(io.BytesIO(b), formats=["PNG"])) for b in blobs])


def write_patches(root: Path, counts: dict[str, int], classes: tuple[str, ...], seed: int) -> None:
    """Write smooth random patches to ROOT/SPLIT/CLASS, two source images per class.

    Args:
        counts: patches of each class, by split.
    """
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                coarse = rng.uniform(60, 200, (4, 4, 3)) + np.array([40 * label, 0, -20 * label])
                pixels = np.kron(coarse, np.ones((8, 8, 1))) + rng.normal(0, 8, (32, 32, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / f"{split}-{name}-{i % 2}__y{32 * i:04d}_x0000.png")


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


COUNTS = {"train": 24, "val": 12, "test": 12}  # patches of a site, half of them of each class
LOOKS = {"north": as_is, "south": pale}


def packed_sites(folder: Path, seed: int = 0, columns: tuple[str, ...] = ("site", "slide")) -> Path:
    """Pack patches of two classes; a slide has 12 patches, two slides of north have 2 and 10.

    The source image of a patch is its slide.
    """
    rows = [f"path,label,split,{','.join(columns)}"]
    for site, look in LOOKS.items():
        rng = np.random.default_rng(seed)  # the same tissue
        for split, count in COUNTS.items():
            labels = np.arange(count) % 2
            for i, image in enumerate(stained_patches(labels, rng, look)):
                slide = f"{site}-{split}-{(i + 10) // 12 if site == 'north' else i // 12}"
                path = f"{site}/{split}/{slide}__y0000_x{32 * i:04d}.png"
                (folder / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
                image.save(folder / "raw" / path)
                values = {"site": site, "slide": slide}
                named = [values[column] for column in columns]
                rows.append(",".join([path, "ab"[labels[i]], split, *named]))
    (folder / "patches.csv").write_text("\n".join(rows) + "\n")
    pack(folder / "raw", folder / "shards", PackOptions(workers=1, manifest=folder / "patches.csv"))
    return folder / "shards"
