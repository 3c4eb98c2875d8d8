"""Options of cutting patches from slides."""

from dataclasses import dataclass, fields
from pathlib import Path

from shards.schema import PATCH

MPP_RANGE = (0.05, 50.0)  # microns per pixel of a microscope; 72 dpi would be 353


@dataclass(frozen=True)
class SlideOptions:
    """Which patches to cut from slides. --mpp or --coords makes SOURCE slides."""

    mpp: float | None = None
    """SOURCE is a slide or a folder of slides: cut patches at this resolution, in microns per
    pixel. Default with --coords: the resolution of the coordinates."""
    mpp_of_slide: float | None = None
    """Microns per pixel of the full image, for slides whose files do not say. A manifest can have
    a column mpp instead."""
    stride: int = PATCH
    """Pixels from one patch to the next, at the resolution of the patches."""
    min_tissue: float = 0.5
    """Least fraction of a patch that is tissue."""
    coords: Path | None = None
    """HDF5 file of TRIDENT or CLAM, or a folder with one per slide: cut the patches inside of its
    boxes, instead of finding tissue."""
    annotations: Path | None = None
    """GeoJSON file of QuPath, or a folder with one per slide: cut the patches inside of its
    annotations, whose classes become the labels."""

    def __post_init__(self) -> None:
        for name, value in (("mpp", self.mpp), ("mpp-of-slide", self.mpp_of_slide)):
            if value is not None and not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
                raise ValueError(
                    f"{name} is {value}, expected {MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}"
                )
        if not 1 <= self.stride <= 1 << 16:
            raise ValueError(f"stride is {self.stride}, expected 1 to 65536 pixels")
        if not 0 <= self.min_tissue <= 1:
            raise ValueError(f"min-tissue is {self.min_tissue}, expected 0 to 1")
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if changed and not self.asked:
            raise ValueError("these options are about slides: give --mpp (0.5 is a usual choice)")

    @property
    def asked(self) -> bool:
        """Whether SOURCE holds slides."""
        return self.mpp is not None or self.coords is not None
