"""Draw docs/equivariance.png: one patch, its rotation, and the code of each by two encoders.

python docs/equivariance.py data/processed/dvae-s0 data/processed/d4-dvae-s0 PATCH.png
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from eval.encoder import PatchEncoder, load
from pipeline import d4
from pipeline.config import ORDER

INK = "#7d8590"  # legible on white and on black: the background is transparent
TITLES = (
    "a patch, and turned by 90°",
    "codes by an ordinary encoder",
    "codes by an equivariant encoder",
)
SIGNS = ("↺", "≠", "↺")


def codes_of(encoder: PatchEncoder, pair: NDArray[np.uint8]) -> torch.Tensor:
    """Codes (2, C, 4, 4) of a patch and its rotation, free of the channels' own permutation.

    The regular fibres of a tied model permute their channels under a rotation; their means do not.
    """
    codes = torch.from_numpy(encoder.encode(pair)).unflatten(1, (-1, 4, 4))
    if encoder.symmetry.fibres == "trivial":
        return codes
    return codes.unflatten(1, (-1, ORDER[encoder.symmetry.group])).mean(2)


def rotation_error(codes: torch.Tensor) -> float:
    """Relative distance between the second code and the first one turned: 0 exact, 1 unrelated."""
    turned = d4.act_one(codes[0], 1)
    spread = (codes - codes.mean((0, 2, 3), keepdim=True)).square().mean()
    return float(((codes[1] - turned).square().mean() / (2 * spread)).sqrt())


def colours_of(codes: torch.Tensor) -> NDArray[np.float32]:
    """(2, 4, 4, 3) in [0, 1]: the three main directions of the cells' vectors as RGB."""
    cells = codes.movedim(1, -1)
    centred = cells - cells.mean((0, 1, 2))
    directions = torch.linalg.svd(centred.flatten(0, 2), full_matrices=False).Vh[:3]
    values = centred @ directions.T
    low, high = values.amin((0, 1, 2)), values.amax((0, 1, 2))
    return ((values - low) / (high - low)).numpy()


def draw(patch: NDArray[np.uint8], encoders: list[PatchEncoder], path: Path) -> None:
    """Write the drawing of a patch (32, 32, 3) and its codes as a PNG."""
    pair = np.stack([patch, np.rot90(patch)])
    codes = [codes_of(encoder, pair) for encoder in encoders]
    errors = [f"turned back, error {rotation_error(code):.2f}" for code in codes]
    figure = Figure((9, 1.95))
    columns = zip(
        TITLES, SIGNS, [pair, *map(colours_of, codes)], ["32x32 RGB", *errors], strict=True
    )
    for column, (title, sign, images, note) in enumerate(columns):
        left = 0.01 + 0.34 * column
        for place, image in zip((left, left + 0.17), images, strict=True):
            ax = figure.add_axes((place, 0.13, 0.13, 0.13 * 9 / 1.95), xticks=[], yticks=[])
            ax.imshow(image, interpolation="nearest")
            ax.spines[:].set_visible(False)
        middle = left + 0.15
        for x, y, text, size in (
            (middle, 0.9, title, 10),
            (middle, 0.43, sign, 16),
            (middle, 0.03, note, 9),
        ):
            figure.text(x, y, text, color=INK, fontsize=size, ha="center", va="center")
    figure.savefig(path, dpi=150, transparent=True, metadata={"Software": None})


if __name__ == "__main__":
    ordinary, equivariant, patch_path = sys.argv[1:]
    draw(
        np.asarray(Image.open(patch_path)),
        [load(ordinary, "cpu"), load(equivariant, "cpu")],
        Path(__file__).with_suffix(".png"),
    )
