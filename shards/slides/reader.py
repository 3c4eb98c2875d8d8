"""Open a slide and read its pixels, by OpenSlide or, for TIFFs that it does not know, tiffslide."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.errors import DataError
from common.machine import version
from shards.codec.png import Pixels
from shards.slides.options import MPP_RANGE

SUFFIXES = ("svs", "tif", "tiff", "ndpi", "mrxs", "scn", "bif", "svslide", "vms", "vmu")

_MAX_SIDE = 1 << 22  # pixels of a slide: a gigapixel slide has some 2 ** 17
TOLERANCE = 0.02  # two resolutions this close are taken for one
_ANISOTROPY = 1.05  # largest ratio of the resolutions of the axes


class SlideError(Exception):
    """A slide, or a part of it, that cannot be used; the message is the reason, without the name
    of the file."""


class Slide:
    """An open slide. Its methods may be called from several threads."""

    def __init__(self, handle: Any, reader: str) -> None:
        self._handle = handle
        self.reader = reader  # name and version of the library
        self.width, self.height = handle.dimensions  # of level 0
        self.downsamples: list[float] = [float(value) for value in handle.level_downsamples]
        self.level_sizes: list[tuple[int, int]] = list(handle.level_dimensions)
        if not 0 < max(self.width, self.height) <= _MAX_SIDE or min(self.downsamples) < 1:
            raise SlideError(f"{self.width}x{self.height} pixels: no size of a slide")

    def close(self) -> None:
        self._handle.close()

    def mpp(self) -> float | None:
        """Microns per pixel of level 0; None if the file does not say.

        Raises:
            SlideError: not a resolution of a microscope, or different resolutions of the axes.
        """
        properties = self._handle.properties
        texts = [
            properties.get(f"openslide.mpp-{axis}") or properties.get(f"tiffslide.mpp-{axis}")
            for axis in "xy"
        ]
        if not all(texts):
            return None
        try:
            x, y = (float(str(text)) for text in texts)
        except ValueError:
            raise SlideError(
                f"microns per pixel are {texts} in the file, expected numbers"
            ) from None
        if not (MPP_RANGE[0] <= x <= MPP_RANGE[1] and MPP_RANGE[0] <= y <= MPP_RANGE[1]):
            return None  # of a screen or printer, as TIFF writers put it there
        if max(x, y) > _ANISOTROPY * min(x, y):
            raise SlideError(f"{x:g} and {y:g} microns per pixel along x and y: not square pixels")
        return (x + y) / 2

    def bounds_corner(self) -> tuple[int, int]:
        """Return x and y of the corner of the area that was scanned, (0, 0) where none is named.

        Source: the OpenSlide properties `openslide.bounds-x` and `-y`, of MIRAX and Leica slides.
        """
        properties = self._handle.properties
        x, y = (int(properties.get(f"openslide.bounds-{axis}") or 0) for axis in "xy")
        return x, y

    def objective_power(self) -> str:
        """Magnification as the file has it; empty if it does not say."""
        return str(self._handle.properties.get("openslide.objective-power") or "")

    def level_for(self, downsample: float) -> int:
        """Return the coarsest level that is not coarser than `downsample` within TOLERANCE."""
        limit = (1 + TOLERANCE) * downsample
        fitting = [i for i, value in enumerate(self.downsamples) if value <= limit]
        return max(fitting, key=lambda i: self.downsamples[i], default=0)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Read a region (height, width, 3) of a level.

        Args:
            x, y: its corner, in pixels of the level. What lies outside of the slide is white.

        Raises:
            SlideError: the region cannot be decoded. The slide is of no more use then.
        """
        pixels = np.full((height, width, 3), 255, np.uint8)
        level_width, level_height = self.level_sizes[level]
        left, top = max(0, x), max(0, y)
        right, bottom = min(x + width, level_width), min(y + height, level_height)
        if right <= left or bottom <= top:
            return pixels
        downsample = self.downsamples[level]
        corner = round(left * downsample), round(top * downsample)
        try:
            image = self._handle.read_region(corner, level, (right - left, bottom - top))
        except Exception as error:  # of two libraries, which raise what their decoders do
            raise SlideError(f"cannot be decoded at {corner}: {_first_line(error)}") from None
        region = _on_white(np.asarray(image))
        if region.shape == pixels.shape:
            return region
        pixels[top - y : bottom - y, left - x : right - x] = region
        return pixels


@contextmanager
def open_slide(path: Path) -> Iterator[Slide]:
    """Open a slide.

    Raises:
        SlideError: neither library can read the file.
        DataError: OpenSlide is not installed.
    """
    slide = _open(path)
    try:
        yield slide
    finally:
        slide.close()


def _open(path: Path) -> Slide:
    try:
        import openslide
    except ImportError as error:  # of openslide-bin's library too
        raise DataError(
            f"slides are read by OpenSlide, which is missing ({_first_line(error)}): "
            f"pip install 'eqdvae[slides]'"
        ) from None
    try:
        return Slide(openslide.OpenSlide(path), f"OpenSlide {openslide.__library_version__}")
    except (openslide.OpenSlideError, OSError) as error:
        reason = f"OpenSlide: {_first_line(error)}"
    try:
        import tiffslide
    except ImportError:
        raise SlideError(f"{reason}; tiffslide, which reads more TIFFs, is not installed") from None
    # its TIFF parser logs what it raises or passes over, and names no file
    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    try:
        handle = tiffslide.TiffSlide(path)
        _require_rgb(handle)
        return Slide(handle, f"tiffslide {version('tiffslide')}")
    except Exception as error:  # its parsers raise nothing narrower
        raise SlideError(f"{reason}; tiffslide: {_first_line(error)}") from None


def _require_rgb(handle: Any) -> None:
    """Refuse what tiffslide reads as if it were RGB, or only fails at when its pixels are asked for
    (OpenSlide converts all that it reads)."""
    file = handle.ts_tifffile
    if not len(file.pages):
        raise ValueError("no image in the TIFF, which may have been cut")
    page = file.series[handle.properties["tiffslide.series-index"]].keyframe
    colours, samples = page.photometric.name, page.samplesperpixel
    if page.dtype != np.uint8 or colours not in ("RGB", "YCBCR") or samples not in (3, 4):
        raise ValueError(f"pixels are {samples} x {page.dtype} {colours}, expected 8-bit RGB")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _on_white(pixels: Pixels) -> Pixels:
    """Return RGB from RGB, or from RGBA composited on white."""
    if pixels.shape[2] == 3:
        return pixels
    if (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
