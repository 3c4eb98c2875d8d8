"""Boxes on a slide from an HDF5 file of TRIDENT or CLAM.

Both write a dataset `coords` (n, 2): x and y of the corners of square boxes, in pixels of level 0.
Its attributes give the side of a box. TRIDENT: `patch_size` in pixels at `target_magnification`,
`patch_size_level0` (or `level0_magnification` to compute it from), `overlap`, `level0_width` and
`level0_height`. CLAM: `patch_size` in pixels of level `patch_level`, and perhaps
`custom_downsample`. (trident/IO.py `coords_to_h5`; CLAM wsi_core/WholeSlideImage.py
`process_contour`.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from shards.slides.reader import Slide, SlideError

_MAX_BOXES = 20_000_000
_MAX_SIDE = 1 << 20
COORDINATE_FILES = (  # of a slide of this name, in a folder
    "{}_patches.h5",
    "patches/{}_patches.h5",
    "{}.h5",
    "patches/{}.h5",
)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Square boxes on a slide."""

    corners: NDArray[np.int64]  # (n, 2) x and y, pixels of level 0
    side: float  # pixels of level 0
    pixels: int  # side at the resolution of the tool that wrote them

    @property
    def scale(self) -> float:
        """Pixels of level 0 per pixel of a box, as the tool read it."""
        return self.side / self.pixels


def read_boxes(file: Path, slide: Slide) -> Boxes:
    """Read the boxes of a slide.

    Raises:
        SlideError: not such a file, or of another slide.
        DataError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(f"{file} is read by h5py: pip install 'eqdvae[slides]'") from None
    try:
        with h5py.File(file, "r") as opened:
            if not isinstance(opened.get("coords", getlink=True), h5py.HardLink):
                raise SlideError(f"{file.name} has no dataset coords")  # or one in another file
            coords = opened["coords"]
            if not isinstance(coords, h5py.Dataset) or coords.is_virtual or coords.external:
                raise SlideError(f"{file.name}: coords is no plain dataset")
            shape, kind = coords.shape, coords.dtype
            if kind.kind not in "iu" or shape[1:] != (2,) or shape[0] > _MAX_BOXES:
                raise SlideError(f"{file.name}: coords is {kind} {shape}, expected integers (n, 2)")
            corners = coords[:].astype(np.int64)
            attributes = {name: coords.attrs[name] for name in coords.attrs}
    except SlideError:
        raise
    except Exception as error:  # of a library that parses a damaged file
        raise SlideError(f"{file.name} cannot be read as HDF5: {error}") from None
    for name, size in (("level0_width", slide.width), ("level0_height", slide.height)):
        if name in attributes and _number(file, attributes, name) != size:
            raise _other_slide(file, name, attributes[name], size)
    pixels = int(_number(file, attributes, "patch_size"))
    return Boxes(corners=corners, side=_side(file, attributes, pixels, slide), pixels=pixels)


def _side(file: Path, attributes: Mapping[str, object], pixels: int, slide: Slide) -> float:
    """Return the side of a box in pixels of level 0."""
    if "patch_level" in attributes:
        level = int(_number(file, attributes, "patch_level", least=0))
        if level >= len(slide.downsamples):
            raise SlideError(f"{file.name}: patch_level is {level}, the slide has no such level")
        size, of_slide = attributes.get("level_dim"), slide.level_sizes[level]
        if size is not None and np.asarray(size).tolist() != list(of_slide):
            raise _other_slide(file, "level_dim", size, of_slide)
        custom = (
            _number(file, attributes, "custom_downsample")
            if "custom_downsample" in attributes
            else 1
        )
        return pixels * slide.downsamples[level] * custom
    if "patch_size_level0" in attributes:
        return _number(file, attributes, "patch_size_level0")
    return (
        pixels
        * _number(file, attributes, "level0_magnification")
        / _number(file, attributes, "target_magnification")
    )


def _number(file: Path, attributes: Mapping[str, object], name: str, least: float = 1) -> float:
    value = attributes.get(name)
    number = np.asarray(value)
    if number.shape != () or number.dtype.kind not in "iuf" or not least <= number <= _MAX_SIDE:
        raise SlideError(
            f"{file.name}: attribute {name} of coords is {value!r}, expected a number, "
            f"{least} or more, as TRIDENT and CLAM write it"
        )
    return float(number)


def _other_slide(file: Path, name: str, value: object, size: object) -> SlideError:
    return SlideError(
        f"{file.name}: {name} is {value}, and the slide has {size}: coordinates of another slide"
    )
