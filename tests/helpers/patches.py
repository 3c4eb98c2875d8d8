"""Patches for tests: real ones where they are on this machine, and random ones as PNG files."""

import io
import os
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL_DATA = Path(os.environ.get("EQDVAE_REAL_DATA", BESIDE_THE_CHECKOUT))


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
