"""Pixels of patches: regions of a level, copied or resampled.

A region of many patches is decoded at once. Where the level has the resolution of the patches, they
are copied out of it. Otherwise each is resampled once, by PIL's antialiased Lanczos filter, as
`--convert resize` does. An average over areas would be faster, but keeps less of the contrast of
nuclei, and at ratios that are no whole numbers it averages uneven numbers of pixels. The filter
takes pixels from around the patch, so that neighbouring patches continue each other. A patch
depends on the slide and on its own position only, not on the region that it was decoded in.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.codec.png import RAW_BYTES, STORED_ROW
from shards.schema import PATCH
from shards.slides.grid import Resolution
from shards.slides.reader import Slide
from shards.sources.source import Patch

REGION = 2048  # side of a region in pixels of its level: 16 MB while it is decoded

_SUPPORT = 3  # of the Lanczos filter, in pixels of the patch

KeyedPatch = tuple[int, Patch]


def regions(patches: Sequence[KeyedPatch], downsample: float) -> list[list[KeyedPatch]]:
    """Group patches by the square of the slide that their corner is in, row by row."""
    side = REGION * downsample
    groups: dict[tuple[int, int], list[KeyedPatch]] = defaultdict(list)
    for keyed in patches:
        x, y = corner(keyed[1])
        groups[int(y // side), int(x // side)].append(keyed)
    return [groups[place] for place in sorted(groups)]


def corner(patch: Patch) -> tuple[int, int]:
    """Return x and y of a patch of a slide, pixels of level 0."""
    assert patch.x is not None and patch.y is not None
    return patch.x, patch.y


def cut(slide: Slide, how: Resolution, patches: Sequence[Patch]) -> NDArray[np.uint8]:
    """Return the rows (n, 32, 97) of patches that lie close together, as `png.inflate` gives them.

    Raises:
        SlideError: the region cannot be decoded.
    """
    downsample = slide.downsamples[how.level]
    width, height = slide.level_sizes[how.level]
    corners = np.array([corner(patch) for patch in patches]) / downsample
    rows = np.zeros((len(patches), PATCH, STORED_ROW), np.uint8)
    assert rows[0].nbytes == RAW_BYTES
    pixels = rows[:, :, 1:]
    if how.factor == 1:
        places = np.rint(corners).astype(int)
        (x0, y0), (x1, y1) = places.min(0).tolist(), (places.max(0) + PATCH).tolist()
        region = slide.read(how.level, x0, y0, x1 - x0, y1 - y0)
        for row, (x, y) in zip(pixels, (places - (x0, y0)).tolist(), strict=True):
            row[:] = region[y : y + PATCH, x : x + PATCH].reshape(PATCH, -1)
        return rows
    side, margin = PATCH * how.factor, math.ceil(_SUPPORT * how.factor) + 1
    first = np.maximum(np.floor(corners).astype(int) - margin, 0)
    last = np.minimum(np.ceil(corners + side).astype(int) + margin, (width, height))
    (x0, y0), (x1, y1) = first.min(0).tolist(), last.max(0).tolist()
    region = slide.read(how.level, x0, y0, x1 - x0, y1 - y0)
    whole = Image.fromarray(region)
    offsets = (x0, y0, x0, y0)
    windows = (np.concatenate([first, last], axis=1) - offsets).tolist()
    boxes = np.concatenate([corners - first, corners + side - first], axis=1)
    boxes = np.minimum(boxes, np.tile(last - first, 2)).tolist()
    for row, window, box in zip(pixels, windows, boxes, strict=True):
        # cropped first: the weights of the filter would differ in their last bits with the region
        part = whole.crop(window).resize((PATCH, PATCH), Image.Resampling.LANCZOS, tuple(box))
        row[:] = np.asarray(part).reshape(PATCH, -1)
    return rows
