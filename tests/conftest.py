"""Fixtures shared by rooms: the real patches where they are, and small made data sets."""

import io
import os
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.pack.__main__ import pack
from shards.pack.plan import PackOptions

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
REAL = Path(os.environ.get("EQDVAE_REAL_DATA", BESIDE))


# the batches of tests are too small to share, and threads that spin stop a busy machine
torch.set_num_threads(1)
threadpoolctl.threadpool_limits(1)


@cache
def real_patches(count: int, archive: str = "colon_7class.tar") -> NDArray[np.uint8]:
    """(count, 32, 32, 3) real H&E patches spread over an archive; skips where it is absent."""
    if not (REAL / archive).is_file():
        pytest.skip(f"the real patches ({archive}) are not on this machine")
    with tarfile.open(REAL / archive) as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".png")]
        chosen = members[:: max(1, len(members) // count)][:count]
        blobs = [tar.extractfile(m).read() for m in chosen]  # type: ignore[union-attr]
    return np.stack([np.asarray(Image.open(io.BytesIO(b), formats=["PNG"])) for b in blobs])


def write_patches(root: Path, counts: dict[str, int], classes: tuple[str, ...], seed: int) -> None:
    """Class folders under split folders: smooth random patches, two source images a class."""
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


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of two classes: 24 train, 8 val and 8 test patches a class."""
    folder = tmp_path_factory.mktemp("small")
    write_patches(folder / "raw", {"train": 24, "val": 8, "test": 8}, ("normal", "tumor"), seed=0)
    pack(folder / "raw", folder / "shards", PackOptions(shard_size=20, workers=1))
    return folder / "shards"
