"""Where tissue is on a slide: Otsu's threshold on the saturation of a thumbnail.

Stained tissue is coloured, and glass, dust and shadows are grey, so saturation (the largest less
the smallest of R, G and B) tells them apart; black borders have none either. The threshold is kept
within limits: a slide without tissue would otherwise be divided by its noise, and one that is all
tissue by its stains. Ink of pens is coloured, too, but not as haematoxylin and eosin are, whose
green is never above red and whose blue is never far above it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.codec.png import Pixels
from shards.slides.grid import Positions, Resolution
from shards.slides.reader import Slide, SlideError

# scipy is imported where it is used: every worker of a pack, also of patches, imports this module

MASK_MPP = 8.0  # of the thumbnail, or up to twice as fine

_MAX_THUMBNAIL = 100 << 20  # pixels: 80x80 mm
_BLOCK = 2048  # pixels of a level that are read at once
_THRESHOLD = (12, 25)  # limits of the threshold on the saturation, 0 to 255
_MIN_TISSUE_UM2 = 10_000.0  # smaller pieces are dust, and smaller patches of ink are stain
_MAX_HOLE_UM2 = 10_000.0  # smaller holes are lumina
_INK_EDGE_UM = 24.0  # the blurred edge of ink
_DARK = 70  # the brightest channel of black ink
_GREEN_OVER_RED, _BLUE_OVER_RED = 12, 80  # at least, of green and blue ink
_RED_OVER_GREEN, _BLUE_OVER_GREEN = 80, 18  # at least and at most, of red ink


@dataclass(frozen=True)
class Thumbnail:
    """A slide made small."""

    pixels: Pixels  # (h, w, 3)
    step: float  # pixels of level 0 per pixel

    def reduced(self, step: float) -> "Thumbnail":
        """Return it smaller, with at most `step` pixels of level 0 per pixel."""
        factor = int(step / self.step)
        if factor <= 1:
            return self
        pixels = np.asarray(Image.fromarray(self.pixels).reduce(factor))
        return Thumbnail(pixels, self.step * factor)


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide."""

    mask: NDArray[np.bool_]  # of the thumbnail
    step: float  # pixels of level 0 per pixel
    tissue_mm2: float
    ink_mm2: float

    def fractions(self, positions: Positions, how: Resolution) -> NDArray[np.float64]:
        """Return the fraction (n,) of each patch that is tissue."""
        from scipy import ndimage

        sums = np.pad(self.mask, ((1, 0), (1, 0))).cumsum(0, np.int64).cumsum(1).astype(np.float64)
        x, y = (axis / self.step for axis in positions)
        side = how.side / self.step

        def total(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            area: NDArray[np.float64] = ndimage.map_coordinates(
                sums, [y, x], order=1, mode="nearest"
            )
            return area

        area = total(x + side, y + side) - total(x, y + side) - total(x + side, y) + total(x, y)
        return area / side**2


def thumbnail(slide: Slide, step: float) -> Thumbnail:
    """Make a slide small by averaging, block by block of the coarsest level that serves.

    Args:
        step: pixels of level 0 per pixel, at most.

    Raises:
        SlideError: the slide cannot be decoded, or is larger than any slide.
    """
    level = slide.level_for(step)
    downsample = slide.downsamples[level]
    reduction = max(1, int(step / downsample))
    width, height = (-(-size // reduction) for size in slide.level_sizes[level])
    if width * height > _MAX_THUMBNAIL:
        raise SlideError(f"{slide.width}x{slide.height} pixels: larger than any slide")
    pixels = np.empty((height, width, 3), np.uint8)
    block = max(1, _BLOCK // reduction)
    for y in range(0, height, block):
        for x in range(0, width, block):
            part = pixels[y : y + block, x : x + block]
            size = part.shape[1] * reduction, part.shape[0] * reduction
            region = slide.read(level, x * reduction, y * reduction, *size)
            part[:] = np.asarray(Image.fromarray(region).reduce(reduction))
    return Thumbnail(pixels, downsample * reduction)


def find_tissue(thumb: Thumbnail, mpp_of_slide: float) -> Tissue:
    """Find the tissue on a thumbnail.

    Args:
        mpp_of_slide: microns per pixel of level 0.
    """
    from scipy import ndimage

    mpp = thumb.step * mpp_of_slide
    pixels = ndimage.uniform_filter(thumb.pixels, (3, 3, 1)).astype(np.int16)
    saturation = (pixels.max(2) - pixels.min(2)).astype(np.uint8)
    coloured = saturation > np.clip(_otsu(saturation), *_THRESHOLD)
    least, most = _MIN_TISSUE_UM2 / mpp**2, _MAX_HOLE_UM2 / mpp**2
    ink = _without_small(_ink_coloured(pixels), least)
    ink = ndimage.binary_dilation(ink, iterations=max(1, round(_INK_EDGE_UM / mpp)))
    mask = ndimage.binary_closing(np.pad(coloured, 1, "edge"), np.ones((3, 3)))[1:-1, 1:-1]
    mask = _without_small(mask & ~ink, least)
    mask = ~_without_small(~mask, most) & ~ink
    mm2 = (mpp / 1000) ** 2
    return Tissue(mask, thumb.step, float(mask.sum() * mm2), float(ink.sum() * mm2))


def _ink_coloured(pixels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return where (h, w, 3) pixels have the colour of ink: green, blue, red or black.

    Black is also the border of some scans.
    """
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    bluish = (green - red > _GREEN_OVER_RED) | (blue - red > _BLUE_OVER_RED)
    reddish = (red - green > _RED_OVER_GREEN) & (blue - green < _BLUE_OVER_GREEN)
    ink: NDArray[np.bool_] = bluish | reddish | (pixels.max(2) < _DARK)
    return ink


def _without_small(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    """Remove connected pieces of fewer than `least` pixels."""
    from scipy import ndimage

    pieces, _ = ndimage.label(mask)
    large = np.bincount(pieces.ravel()) >= least
    large[0] = False
    kept: NDArray[np.bool_] = large[pieces]
    return kept


def _otsu(values: NDArray[np.uint8]) -> int:
    """Return the threshold that divides the values into the two most different groups.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sums / below - (sums[-1] - sums) / above
        between = below * above * difference**2
    return int(np.nan_to_num(between).argmax())
