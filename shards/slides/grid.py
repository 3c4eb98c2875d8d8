"""Positions of patches on a slide: a lattice over all of it, or lattices in boxes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.schema import PATCH
from shards.slides.reader import TOLERANCE, Slide, SlideError
from shards.sources.source import Patch

_MAX_POSITIONS = 100_000_000

Positions = tuple[NDArray[np.int64], NDArray[np.int64]]  # x (n,) and y (n,), pixels of level 0


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """How the patches of a slide are read."""

    mpp: float  # of a patch, in microns per pixel
    level: int
    scale: float  # pixels of level 0 per pixel of a patch
    factor: float  # pixels of `level` per pixel of a patch; 1: copied, not resampled

    @property
    def side(self) -> float:
        """Side of a patch in pixels of level 0."""
        return PATCH * self.scale


def resolution(slide: Slide, mpp_of_slide: float, mpp: float) -> Resolution:
    """Choose the level to read: the coarsest that is as fine as `mpp`.

    Pixels of a level within TOLERANCE of `mpp` are copied, and the patch has the level's own
    resolution: resampling by a percent would only blur.

    Raises:
        SlideError: the slide is coarser than `mpp`.
    """
    scale = mpp / mpp_of_slide
    if scale < 1 - TOLERANCE:
        raise SlideError(
            f"{mpp_of_slide:g} microns per pixel: patches at {mpp:g} would have no more detail"
        )
    level = slide.level_for(scale)
    downsample = slide.downsamples[level]
    if abs(scale / downsample - 1) <= TOLERANCE:
        mpp, scale = mpp_of_slide * downsample, downsample
    return Resolution(mpp=mpp, level=level, scale=scale, factor=scale / downsample)


def resolution_of(slide: Slide, patch: Patch) -> Resolution:
    """Return how a patch is read that was listed with its resolution and scale."""
    assert patch.mpp is not None and patch.scale is not None
    level = slide.level_for(patch.scale)
    factor = patch.scale / slide.downsamples[level]
    return Resolution(mpp=patch.mpp, level=level, scale=patch.scale, factor=factor)


def lattice(slide: Slide, how: Resolution, stride: int) -> Positions:
    """Return the corners of all patches that lie inside of the slide, row by row."""
    columns = _steps(slide.width, how, stride)
    rows = _steps(slide.height, how, stride)
    return np.tile(columns, len(rows)), np.repeat(rows, len(columns))


def inside_boxes(
    slide: Slide, how: Resolution, stride: int, corners: NDArray[np.int64], side: float
) -> Positions:
    """Return the corners of the patches inside of square boxes, row by row, each once.

    Args:
        corners: (n, 2) x and y of the boxes, pixels of level 0.
        side: of a box.

    Raises:
        SlideError: a box is smaller than a patch, or the boxes hold more than a slide can.
    """
    steps = _steps(side + TOLERANCE * how.side, how, stride)
    if not len(steps):
        raise SlideError(
            f"boxes of {side:g} pixels, too small for a patch of {how.side:g} (at {how.mpp:g} "
            f"microns per pixel)"
        )
    if len(corners) * len(steps) ** 2 > _MAX_POSITIONS:
        raise SlideError(f"{len(corners)} boxes of {side:g} pixels: no coordinates of tissue")
    x = (corners[:, :1] + np.tile(steps, len(steps))).reshape(-1)
    y = (corners[:, 1:] + np.repeat(steps, len(steps))).reshape(-1)
    fits = (x >= 0) & (y >= 0) & (x + how.side <= slide.width) & (y + how.side <= slide.height)
    y, x = np.unique(np.stack([y[fits], x[fits]]), axis=1)
    return x, y


def _steps(length: float, how: Resolution, stride: int) -> NDArray[np.int64]:
    """Return where patches begin along a side of `length`."""
    step = stride * how.scale
    count = max(0, int((length - how.side) // step) + 1)
    return np.floor(np.arange(count) * step).astype(np.int64)
