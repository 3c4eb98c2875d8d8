"""CRCHistoPhenotypes: 100 images of 500x500 pixels with the centres of nuclei of four classes.

    Classification/img1/img1.bmp
    Classification/img1/img1_{epithelial,fibroblast,inflammatory,others}.mat    detection (n, 2)

A point is x and y as MATLAB counts, the centre of the first pixel is 1. The 32x32 around it begins
at the pixel floor(x - 16), counted from 0; where that leaves the image the nucleus is left out.

Which of the 9 patients an image is from was not published, but images of neighbouring numbers have
similar colours, as if of one slide. Splits are therefore blocks of ten consecutive images, which
cut few slides: 21 to 30 and 71 to 80 are test, 41 to 50 val, the others train.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from shards.known.inputs import Inputs
from shards.known.mat import read_matrix
from shards.schema import PATCH
from shards.sources.source import Collection, Patch

CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
IMAGES = 100
SIDE = 500
MPP = 0.55
RULE = "the image that the nucleus is in"

_SPLIT_OF_BLOCK = {2: "test", 7: "test", 4: "val"}  # of ten images, from 0


def split_of(number: int) -> str:
    """Return the split of an image, 1 to 100."""
    return _SPLIT_OF_BLOCK.get((number - 1) // 10, "train")


def collect(inputs: Inputs) -> Collection:
    """List the nuclei whose patch lies in the image.

    Raises:
        DataError: a file is missing, damaged or not as described above; another number of images
            or nuclei.
    """
    folder = inputs.require("Classification")
    patches: list[Patch] = []
    counts: Counter[str] = Counter()
    images = 0
    for number in range(1, IMAGES + 1):
        name = f"img{number}"
        image = folder / name / f"{name}.bmp"
        if not image.exists():
            continue
        images += 1
        with _opened(image):
            status = image.stat()
        for label in CLASSES:
            points = read_points(folder / name / f"{name}_{label}.mat")
            counts[label] += len(points)
            for x, y in (np.floor(points - PATCH // 2).astype(int)).tolist():
                if min(x, y) < 0 or max(x, y) > SIDE - PATCH:
                    continue
                patches.append(
                    Patch(
                        path=inputs.relative(image),
                        label=label,
                        split=split_of(number),
                        source=name,
                        y=y,
                        x=x,
                        size=status.st_size,
                        mtime_ns=status.st_mtime_ns,
                        mpp=MPP,
                        tile=(y, x),
                    )
                )
    inputs.check_count(folder, "images", images, IMAGES)
    for label in CLASSES:
        place = folder / f"img*/img*_{label}.mat"
        inputs.check_count(place, "nuclei", counts[label], inputs.facts.counts[label])
    return inputs.collection(
        patches,
        RULE,
        notes=["32x32 around each nucleus; splits by blocks of ten images"],
        left_out={"nuclei within 16 pixels of a border": counts.total() - len(patches)},
    )


def read_points(path: Path) -> NDArray[np.float64]:
    """Read the points (n, 2) of a .mat file, x and y.

    Raises:
        DataError: not such a file, or a point that is not in the image.
    """
    points = read_matrix(path, "detection")
    if not points.size:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise DataError(f"{path}: detection is {points.shape}, expected x and y in rows: (n, 2)")
    outside = ~((points >= 0) & (points <= SIDE + 1)).all(axis=1)  # and what is not a number
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise DataError(f"{path}: point {row + 1} is {points[row].tolist()}, outside of the image")
    return points


def read(root: Path, file: str, blocks: Sequence[Sequence[Patch]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of each block of patches of an image, (n, 32, 32, 3)."""
    with _opened(root / file) as image:
        pixels = np.asarray(image)
    for block in blocks:
        places = [patch.tile or (0, 0) for patch in block]
        yield np.stack([pixels[y : y + PATCH, x : x + PATCH] for y, x in places])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, which is decoded when its pixels are asked for.

    Raises:
        DataError: unreadable, damaged, or not 500x500 RGB.
    """
    try:
        with Image.open(path, formats=["BMP"]) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                shown = f"{image.width}x{image.height} {image.mode}"
                raise DataError(f"{path} is {shown}, expected {SIDE}x{SIDE} RGB")
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders raise nothing narrower
        raise DataError(f"{path} cannot be read as BMP: {error}; download it again") from None
