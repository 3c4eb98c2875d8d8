"""A patch, what a source lists, and the protocol that every kind of source follows."""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from msgspec import UNSET, Struct, UnsetType

from common.errors import DataError


class Patch(NamedTuple):
    """One patch and the image file it is in. A tuple: packing makes and sends millions of them."""

    path: str  # relative to the root, with /
    label: str | None  # class name
    split: str
    source: str  # source image: the smallest group that no split may cut; the path if unknown
    y: int | None  # pixel row in the source image
    x: int | None  # pixel column
    size: int  # bytes of the file
    mtime_ns: int
    slide: str | None = None
    patient: str | None = None
    site: str | None = None
    mpp: float | None = None  # microns per pixel
    tile: tuple[int, int] | None = None  # row and column in its file, where that holds several
    scale: float | None = None  # pixels of the slide per pixel, where it is cut from one

    @property
    def known_source(self) -> str | None:
        """The source image; None if unknown. Tiles are from an image: the file."""
        return None if self.source == self.path and self.tile is None else self.source

    @property
    def group(self) -> tuple[str, str]:
        """Kind and name of what a split must not cut: the patient, or the slide, or the source, or
        the patch alone where none is known."""
        if self.patient is not None:
            return "patient", self.patient
        if self.slide is not None:
            return "slide", self.slide
        return ("patch", self.path) if self.known_source is None else ("source", self.source)


class Membership(NamedTuple):
    """The split, class and groups of a patch."""

    split: str
    label: str | None
    patient: str | None
    slide: str | None
    source: str | None  # None: unknown


_membership = attrgetter("split", "label", "patient", "slide", "known_source")


class ManifestOrigin(Struct, frozen=True, kw_only=True):
    """The manifest that listed the patches: the same table gives the same record."""

    name: str
    xxh3: str
    rows: int
    columns: dict[str, str]  # field of a patch to the column that gives it


class Conversion(Struct, frozen=True, kw_only=True):
    """How images became patches; the counts are set by the rule `tile` only."""

    rule: str
    images: int | UnsetType = UNSET
    images_with_remainder: int | UnsetType = UNSET
    pixels: int | UnsetType = UNSET
    pixels_left: int | UnsetType = UNSET


class SlideOrigin(Struct, frozen=True, kw_only=True):
    """How patches were cut from slides."""

    mpp: float | None  # asked for; None: that of the coordinates
    stride: int
    min_tissue: float
    coords: str | None  # name of the file or folder
    annotations: str | None
    resampling: str
    slides: int  # that have patches
    readers: dict[str, int]  # number of slides by library and version


class ClassCount(Struct):
    """Patches and groups of a class in a split."""

    patches: int = 0
    groups: int = 0


class SplitDraw(Struct, frozen=True, kw_only=True):
    """Splits that were drawn: by which kinds of group, what was asked for and what came out."""

    by: list[str]
    val: float
    test: float
    achieved: dict[str, dict[str, ClassCount]] | UnsetType = UNSET  # split, class ('': unlabelled)


class Groups(Struct, frozen=True, kw_only=True):
    """By what the patches are grouped, so that splits, budgets and intervals keep them together."""

    rule: str  # what the source of a patch is
    patches: dict[str, int]  # patches by the kind of their group; "patch": source unknown
    examples: list[list[str]]  # path, kind and name of the group


class KnownOrigin(Struct, frozen=True, kw_only=True):
    """The public set that the patches are of; see `shards.known`."""

    name: str
    title: str
    url: str
    licence: str
    partial: bool  # fewer patches than the set has were accepted
    left_out: dict[str, int]  # number of patches by reason


class Origin(Struct, frozen=True, kw_only=True):
    """Where the patches come from, for `dataset.json`; fields that do not apply are left out."""

    layout: str | UnsetType = UNSET
    sources: Groups | UnsetType = UNSET
    links: str | UnsetType = UNSET  # "followed": files may be outside of the folder
    manifest: ManifestOrigin | UnsetType = UNSET
    convert: Conversion | UnsetType = UNSET
    slides: SlideOrigin | UnsetType = UNSET
    known: KnownOrigin | UnsetType = UNSET
    splits: SplitDraw | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Result of `Source.collect`: the patches, and notes on how they were found."""

    root: str  # as it was named on the command line
    name: str  # of its folder
    patches: list[Patch]  # sorted by path
    refused: list[tuple[str, str]]  # path and reason; counted against --skip-bad
    rule: str = ""  # what the source of a patch is
    hidden: int = 0  # files and folders whose name starts with a dot: not looked at
    ignored: int = 0  # notes and system files beside the images
    splits_from: str = ""  # where the splits are named; empty if the source has none
    origin: Origin
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def memberships(self) -> set[Membership]:
        """Every combination of split, class and groups that occurs."""
        return set(map(Membership._make, set(map(_membership, self.patches))))


class Accepted(Struct, frozen=True):
    """Which files may be patches, before any is opened."""

    suffixes: tuple[str, ...]
    max_bytes: int
    kind: str  # as messages name such a file


class FileBatch(Struct, frozen=True, kw_only=True, tag=True):
    """Files to look up, and what folders or a manifest give for them."""

    root: str
    accepted: Accepted
    group_regex: str | None  # see `names.source_image`
    paths: list[str]  # relative to the root, with /
    columns: dict[str, list[Any]]  # a value per path, by field of a patch; precedes the name
    follow_links: bool = False  # also out of the root
    numbered: bool = False  # see `names.read_name`
    nested: bool = False  # sources are numbered anew for each patient
    listed: bool = False  # by a manifest, whose spelling may differ from that of the files


class BatchPatches(Struct, frozen=True, kw_only=True):
    """Result of looking up a batch of files."""

    patches: list[Patch]  # in the order of the paths
    refused: list[tuple[str, str]]  # path and reason
    missing: list[tuple[int, str]]  # index of the path, and reason
    respelled: list[tuple[int, str]] = []  # index of a path, and how its file is named
    error: tuple[int, str] | None = None  # index and reason of the path that stopped the batch


LookUp = Callable[[Sequence[FileBatch]], Iterable[BatchPatches]]  # a result per batch, in order
ReadPatch = Callable[[int, Patch], tuple[Patch, bytes, bytes]]  # see `Source.open`


class Source(Protocol):
    """One kind of input. An instance holds options only, so that it can be sent to workers."""

    # Whether patches take much longer to decode than to pack: those of a source that is refused are
    # then not all read to list the bad ones, and `stage` continues what an interrupted call left.
    is_slow: ClassVar[bool]

    def collect(self, look_up: LookUp) -> Collection:
        """List the patches.

        Args:
            look_up: `files.look_up` for every batch, perhaps in several processes.

        Raises:
            DataError: the input cannot be listed.
        """

    def stage(self, patches: Iterable[tuple[int, Patch]], scratch: Path, workers: int) -> "Source":
        """Return the source that workers read `patches` (key and patch) from.

        Called once before packing. A source may decode images that hold several patches here, with
        `workers` threads, into the file `scratch`, which the packer removes at the end;
        of a slow source, only after all shards are built.
        """

    def open(self) -> AbstractContextManager[ReadPatch]:
        """Open the source for reading.

        The function takes a key and a patch and returns the patch (moved, where a conversion moves
        it), the bytes of its PNG (empty after a conversion) and its rows, as `png.inflate` gives
        them. It raises PngError for what is not a patch, and DataError for a file that is
        missing, unreadable or changed since it was listed.
        """


def read_file(root: str, patch: Patch) -> bytes:
    """Read the file of a patch, which must still be the one that was listed.

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


def refuse_change(path: Path, patch: Patch) -> None:
    """Refuse a file that is not the one that was listed.

    Raises:
        DataError: missing, unreadable, or changed since.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if (status.st_size, status.st_mtime_ns) != (patch.size, patch.mtime_ns):
        raise DataError(f"{path} changed while it was packed: pack again when nothing writes to it")


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which costs 20 to 50 % while millions of patches are
    built that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
