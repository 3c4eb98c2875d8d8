"""PathMNIST: NCT-CRC-HE at 28x28 (or 64, 128, 224) pixels, in one .npz file.

    train_images, val_images, test_images    (n, 28, 28, 3) uint8
    train_labels, val_labels, test_labels    (n, 1): 0 to 8

Images are resampled to 32x32 by PIL's antialiased Lanczos filter, as `--convert resize` does. The
classes have the names of NCT-CRC-HE. Slides and patients were not published.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from shards.known.inputs import Inputs
from shards.known.npz import open_arrays
from shards.schema import PATCH
from shards.sources.source import Collection, Patch

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
MPP = 3.5  # 224 pixels at 0.5 became 32
RULE = "none: slides and patients were not published"

_SIDES = (28, 64, 128, 224)


def collect(inputs: Inputs) -> Collection:
    """List the patches of the splits.

    Raises:
        DataError: the file is missing, damaged or not as described above; another number of
            patches.
    """
    names = ["pathmnist.npz", *(f"pathmnist_{side}.npz" for side in _SIDES)]
    file = inputs.require(*names)
    status, path = file.stat(), inputs.relative(file)
    patches: list[Patch] = []
    for split in ("train", "val", "test"):
        with open_arrays(file, f"{split}_images", f"{split}_labels") as (images, labels):
            count, side = images.shape[0], images.shape[1] if len(images.shape) > 1 else 0
            if (
                images.dtype != np.uint8
                or images.shape[1:] != (side, side, 3)
                or (side not in _SIDES)
            ):
                raise DataError(
                    f"{images.place} is {images.dtype} {images.shape}, expected uint8 "
                    f"(n, 28, 28, 3) or a side of {', '.join(map(str, _SIDES[1:]))}"
                )
            if labels.shape not in ((count,), (count, 1)):
                raise DataError(f"{labels.place} is {labels.shape}, expected ({count}, 1)")
            inputs.check_count(images.place, "patches", count, inputs.facts.counts[split])
            values = labels.rows(count).reshape(-1).tolist()
        for i, value in enumerate(values):
            if not 0 <= value < len(CLASSES):
                raise DataError(f"{labels.place}: label {i} is {value}, expected 0 to 8")
        patches += [
            Patch(
                path=f"{path}/{split}/{i:06d}",
                label=CLASSES[value],
                split=split,
                source=f"{path}/{split}/{i:06d}",  # unknown
                y=None,
                x=None,
                size=status.st_size,
                mtime_ns=status.st_mtime_ns,
                mpp=MPP,
            )
            for i, value in enumerate(values)
        ]
    note = f"{side}x{side} pixels resampled to {PATCH}x{PATCH} (Lanczos)"
    return inputs.collection(patches, RULE, notes=[note])


def read(root: Path, file: str, blocks: Sequence[Sequence[Patch]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels of each block of patches of a split, (n, 32, 32, 3).

    Args:
        file: path of the file, and the split as a last part.
        blocks: in the order of the array.
    """
    path, _, split = file.rpartition("/")
    with open_arrays(root / path, f"{split}_images") as (images,):
        position = 0
        for block in blocks:
            pixels = np.empty((len(block), PATCH, PATCH, 3), np.uint8)
            for patch, place in zip(block, pixels, strict=True):
                row = int(patch.path.rpartition("/")[2])
                while position <= row:
                    image = images.rows(1)
                    position += 1
                resized = Image.fromarray(image[0]).resize((PATCH, PATCH), Image.Resampling.LANCZOS)
                place[:] = np.asarray(resized)
            yield pixels
        while position < images.shape[0]:  # the checksum is compared at the end
            images.rows(1)
            position += 1
