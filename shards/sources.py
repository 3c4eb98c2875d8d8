"""The patches of a folder: a sorted list, with what folders and names say of each."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shards.layout import PLAIN, Accepted, Layout, Walk, choose_layout
from shards.names import group_pattern, position, source_image, tcga
from shards.schema import DataError
from shards.split import class_warnings

_SHOWN = 10

barcode = lru_cache(maxsize=1 << 16)(tcga)


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch and the image file it is in."""

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


@dataclass(frozen=True)
class Survey:
    """Everything found: the patches, what is not one, and what there is to say about it."""

    patches: list[Patch]  # sorted by path
    refused: list[tuple[str, str]]  # path and reason; counted against --skip-bad
    hidden: int  # files and folders whose name starts with a dot: not looked at
    ignored: int  # notes and system files beside the images
    layout: Layout | None  # of the folders; none when a manifest lists the patches
    has_splits: bool  # the source says itself what is train, val and test
    notes: list[str]
    warnings: list[str]


def scan(root: Path, group_regex: str | None = None, layout: Layout = "auto") -> list[Patch]:
    """The patches under `root`, sorted by path, whatever the order of the directory.

    Raises:
        DataError: as `survey` and `split_warnings`, and when any file is not a PNG.
    """
    found = survey(root, group_regex, layout)
    if found.refused:
        raise DataError(f"{root}: {listing(found.refused, len(found.refused))}")
    split_warnings(root, found.patches)
    return found.patches


def survey(
    root: Path,
    group_regex: str | None = None,
    layout: Layout = "auto",
    accepted: Accepted = PLAIN,
) -> Survey:
    """Walk `root`; see `shards.layout` for the layouts.

    Args:
        group_regex: see `shards.names.source_image`.

    Raises:
        DataError: not a folder, empty, an ambiguous layout, a link that leaves the root, a name
            that is not UTF-8, a path the regex does not match.
    """
    pattern = group_pattern(group_regex)
    walk = Walk(root, accepted)
    chosen, note = choose_layout(root, walk.files, layout)
    patches = []
    for file in walk.files:
        stem = file.stem
        slide = file.folder if chosen == "slides" else None
        label = file.folder if chosen == "classes" else None
        source = source_image(file.path, stem, slide, pattern)
        patient, site = barcode(slide or source) or (None, None)
        y, x = position(stem)
        patches.append(
            Patch(file.path, label, file.split, source, y, x, file.size, file.mtime_ns,
                  slide, patient, site)
        )  # fmt: skip
    notes = [note, *barcode_notes(patches)]
    return Survey(
        patches, walk.refused, walk.hidden, walk.ignored, chosen, bool(walk.splits), notes,
        walk.warnings,
    )  # fmt: skip


def barcode_notes(
    patches: Sequence[Patch], taken: Sequence[str] = ("patient", "site")
) -> list[str]:
    """One line on the fields `taken` from TCGA barcodes, if there are barcodes."""
    if not taken or not any(map(barcode, {patch.slide or patch.source for patch in patches})):
        return []
    found = [patch for patch in patches if barcode(patch.slide or patch.source)]
    counts = [f"{field}s: {len({getattr(p, field) for p in found}):,}" for field in taken]
    return [f"TCGA barcodes in the names of {len(found):,} patches ({', '.join(counts)})"]


def split_warnings(root: Path, patches: Iterable[Patch]) -> list[str]:
    """What an evaluation on these splits will lack.

    Raises:
        DataError: a class that train lacks, or patches with and without a class.
    """
    labels: dict[str, set[str | None]] = {}
    for split, label in {(patch.split, patch.label) for patch in patches}:
        labels.setdefault(split, set()).add(label)
    return class_warnings(root, labels)


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


def listing(refused: list[tuple[str, str]], total: int, shown: int = _SHOWN) -> str:
    """`N files cannot be used as patches`, with the first paths and reasons."""
    lines = [f"{total} file{'s' if total > 1 else ''} cannot be used as patches"]
    lines += [f"  {path!r}: {reason}" for path, reason in refused[:shown]]
    if total > shown:
        lines.append(f"  ... and {total - shown} more")
    return "\n".join(lines)
