"""Fixtures shared by rooms: the real patches where they are, and small made data sets."""

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


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
