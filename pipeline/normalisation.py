"""Stain normalisation of patches: the statistics of units of patches, and their use.

The normalisation is Reinhard's (2001), in CIELAB. A unit is the patches that are normalised by the
same statistics, those of a site, a slide or a source image, never one patch alone: that would
colour fat like tumour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import stain
from pipeline.pixels import to_float, to_pixels, to_tensor
from shards.codec.png import Pixels

Unit = Literal["site", "slide", "source"]

MIN_PATCHES = 8  # of a unit, for statistics of its own
LIGHTEST, MOST_CHROMATIC, WIDEST = 100.0, 128.0, 128.0  # limits of CIELAB values and deviations
CHUNK = 1024  # patches at a time


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of pixels in the channels of CIELAB."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]  # at least stain.CHROMATIC

    def __post_init__(self) -> None:
        limits = ((0.0, LIGHTEST), *[(-MOST_CHROMATIC, MOST_CHROMATIC)] * 2)
        for value, (low, high) in zip(self.mean, limits, strict=True):
            if not low <= value <= high:  # also for NaN
                raise ValueError(f"mean {value} is not in [{low:g}, {high:g}] of CIELAB")
        for value in self.deviation:
            if not stain.CHROMATIC <= value <= WIDEST:
                raise ValueError(f"deviation {value} is not in [{stain.CHROMATIC}, {WIDEST:g}]")


@dataclass(frozen=True)
class Normalisation:
    """How the patches of a run are normalised, for those of any data set."""

    unit: Unit
    target: Statistics  # of the train split of the run


class Normaliser:
    """The normalisation of the patches of a split."""

    def __init__(
        self, codes: NDArray[np.int32], units: Sequence[Statistics], target: Statistics
    ) -> None:
        """Take the unit of every patch, (n,) index into the statistics of units."""
        self.codes = torch.tensor(codes, dtype=torch.long)
        self.mean = torch.tensor([unit.mean for unit in units]).reshape(-1, 3)
        self.deviation = torch.tensor([unit.deviation for unit in units]).reshape(-1, 3)
        self.target = torch.tensor(target.mean), torch.tensor(target.deviation)

    def apply(self, pixels: Pixels, rows: NDArray[np.int64]) -> None:
        """Normalise patches (m, 32, 32, 3), the rows (m,) of the split, in place."""
        for first in range(0, len(rows), CHUNK):
            piece = slice(first, first + CHUNK)
            codes = self.codes[torch.from_numpy(rows[piece])]
            unit = self.mean[codes], self.deviation[codes]
            pixels[piece] = to_pixels(stain.normalise(_to_float(pixels[piece]), unit, self.target))


def statistics(pixels: Pixels) -> Statistics:
    """Compute the statistics of all pixels of patches (n, 32, 32, 3), n > 0, piece by piece."""
    pieces = [pixels[first : first + CHUNK] for first in range(0, len(pixels), CHUNK)]
    by_piece = [stain.statistics(_to_float(piece)) for piece in pieces]
    weights = torch.tensor([len(piece) for piece in pieces], dtype=torch.float64) / len(pixels)
    means = torch.stack([mean.double() for mean, _ in by_piece])
    squares = torch.stack([deviation.double().square() for _, deviation in by_piece])
    mean = weights @ means
    deviation = (weights @ (squares + (means - mean).square())).sqrt().clamp(min=stain.CHROMATIC)
    return Statistics(_triple(mean), _triple(deviation))


def _triple(values: Tensor) -> tuple[float, float, float]:
    first, second, third = values.tolist()
    return first, second, third


def _to_float(pixels: Pixels) -> Tensor:
    return to_float(to_tensor(pixels))
