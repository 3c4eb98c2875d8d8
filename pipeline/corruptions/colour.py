"""Colour changes that no model is trained on: brightness and the strength of the two stains."""

import torch
from torch import Generator, Tensor

from pipeline import stain
from pipeline.corruptions.kind import Kind


def change_brightness(x_BCHW: Tensor, change: float, generator: Generator) -> Tensor:
    """Scale every image by 1 + change or 1 - change."""
    factor_B1 = 1 + change * _signs(len(x_BCHW), 1, generator)
    return (x_BCHW * factor_B1[:, :, None, None]).clamp(0, 1)


def change_staining(x_BCHW: Tensor, change: float, generator: Generator) -> Tensor:
    """Scale haematoxylin and eosin of every image, each by 1 + change or 1 - change."""
    return stain.jitter(x_BCHW, 1 + change * _signs(len(x_BCHW), 2, generator))


def _signs(rows: int, columns: int, generator: Generator) -> Tensor:
    """+1 or -1 with equal chance."""
    return 2.0 * torch.randint(2, (rows, columns), generator=generator) - 1


BRIGHTNESS = Kind(
    title="brightness",
    number=4,
    levels=(0.1, 0.2, 0.3, 0.4, 0.5),
    unit="factor 1 plus or minus",
    apply_at=change_brightness,
)
STAIN = Kind(
    title="staining",
    number=5,
    levels=(0.1, 0.2, 0.3, 0.45, 0.6),
    unit="H and E scaled by 1 +- this",
    apply_at=change_staining,
)
