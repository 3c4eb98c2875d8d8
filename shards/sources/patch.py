"""One patch: where it is, what is known of it, and the bytes of its file."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.errors import DataError


class Patch(NamedTuple):
    """One patch and the image file it is in. A tuple: packing makes and sends millions of them."""

    path: str  # relative to the root, with /
    label: str | None  # class name
    split: str
    source: str  # source image: the smallest group that must not be cut by a split
    y: int | None  # pixel row in the source image
    x: int | None  # pixel column
    size: int  # bytes of the file
    mtime_ns: int
    slide: str | None = None
    patient: str | None = None
    site: str | None = None
    mpp: float | None = None  # microns a pixel
    tile: tuple[int, int] | None = None  # row and column in its file, where that holds several

    @property
    def group(self) -> tuple[str, str]:
        """Kind and name of what a split must not cut: the patient, or the slide, or the source."""
        if self.patient is not None:
            return "patient", self.patient
        return ("source", self.source) if self.slide is None else ("slide", self.slide)


def read_source(root: Path | str, patch: Patch) -> bytes:
    """The bytes of the patch's file, which is still the one the scan saw.

    Raises:
        DataError: missing, unreadable, or changed since.
    """
    path = f"{root}/{patch.path}"
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.read(handle, patch.size + 1)
            status = os.fstat(handle)  # after reading: a change before or during it shows
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if (len(data), status.st_size, status.st_mtime_ns) != (patch.size, patch.size, patch.mtime_ns):
        raise DataError(f"{path} changed while it was packed: pack again when nothing writes to it")
    return data


@contextmanager
def gc_paused() -> Iterator[None]:
    """For making millions of patches that all stay: the search for garbage among them takes from a
    fifth to half of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
