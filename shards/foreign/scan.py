"""Scan one WebDataset tar of another tool: check every member, decode every image once.

A sample is `KEY.png`, `KEY.jpg` or `KEY.jpeg`, with `KEY.cls`, `KEY.json`, both or neither. Its
members may be in any order, and between those of other samples. The tar is only read; the result is
its sidecar, but with labels as text and without keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from deflate import crc32

from common.errors import DataError
from shards.codec.images import JPEG_START, decode_all
from shards.codec.png import MAX_PNG_BYTES
from shards.codec.tar_reader import Member, Rules, TarError, key_suffix, read_members
from shards.foreign.fields import NONE, Fields, class_text, json_fields
from shards.schema import CHANNELS, MAX_LISTED, SIDECAR
from shards.sources.files import is_junk_folder, is_system_file
from shards.sources.names import barcode, group_pattern, read_name, source_image

MAX_SAMPLES = 1 << 20  # per tar: the scan holds half a kilobyte per sample
IMAGES = ("png", "jpg", "jpeg")
_LIMITS = {**dict.fromkeys(IMAGES, MAX_PNG_BYTES), "cls": 1 << 10, "json": 1 << 16, "txt": 1 << 16}
_CLOSING = 1 << 21  # bytes after the last member: GNU tar fills up to its blocking factor
_BATCH = 64

# columns of a scan: the label is text, and there is no key
SCANNED = pa.schema(
    [pa.field("label", pa.string()), *(SIDECAR.field(n) for n in SIDECAR.names[2:])]
)


@dataclass(frozen=True)
class ScanOptions:
    """How to read the members of a sample."""

    label_field: str | None = None
    """Field of KEY.json to use as the label, instead of KEY.cls."""
    label_suffix: str = "cls"
    """Suffix of the member that is the label, as in KEY.cls."""
    ignore: tuple[str, ...] = ()
    """Suffixes of members to skip, as in KEY.SUFFIX."""
    group_regex: str | None = None
    """Regular expression searched in each key; its first group is the source image. Default: the
    field `source` of KEY.json, or the slide, or the key before __"""

    def __post_init__(self) -> None:
        if needed := set(self.ignore) & set(IMAGES):
            raise ValueError(f"--ignore {sorted(needed)}: images cannot be skipped")
        suffix = self.label_suffix
        taken = suffix != "cls" and suffix in self.ignore
        if taken or suffix in (*IMAGES, "json", "") or suffix != suffix.lower().strip("."):
            raise ValueError(
                f"--label-suffix {suffix!r}: expected that of a text member, in lower case, as cls "
                f"or txt; a field of KEY.json is taken by --label-field"
            )
        try:
            group_pattern(self.group_regex)
        except DataError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used; `offset` is that of its first header in the tar."""

    tar: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.tar} at byte {self.offset}: {self.reason}"


@dataclass(frozen=True)
class Scan:
    """Result of scanning one tar."""

    table: pa.Table  # SCANNED, in the order of the images
    kinds: frozenset[str]  # members of the samples beside the image that are read: cls, json
    size: int
    xxh3: str
    channel_sums: list[int]  # of the 0-255 values, RGB
    bad: list[Bad]  # the first MAX_LISTED
    bad_count: int
    junk: int = 0  # members that file managers left: ._*, __MACOSX, .DS_Store
    broken: Bad | None = None  # where reading the tar had to stop
    unread: frozenset[str] = frozenset()  # other members of the samples: txt


@dataclass(frozen=True, slots=True)
class _Image:
    number: int  # in the order of the tar
    name: str
    offset: int
    size: int
    crc32: int


@dataclass(slots=True)
class _Sample:
    offset: int
    kinds: tuple[str, ...] = ()  # of its members: image, cls, json, txt
    image: _Image | None = None
    label: str | None = None
    fields: Fields = NONE
    problem: str | None = None


def scan_tar(path: Path, name: str, options: ScanOptions) -> Scan:
    """Scan the tar at `path`.

    Args:
        name: name of the tar in messages and rows.

    Raises:
        DataError: it cannot be opened, or changes while it is read.
    """
    scanning, broken = _Scanning(name, options), None
    ignored = frozenset(suffix.lower().lstrip(".") for suffix in options.ignore)
    limits = {**_LIMITS, options.label_suffix: _LIMITS["cls"]}
    rules = Rules(limits, _CLOSING, ignored, extended=True, junk=scanning.is_junk)
    digest = xxhash.xxh3_64()
    try:
        before = path.stat()
        try:
            for member in read_members(path, rules, digest):
                scanning.take(member)
        except TarError as error:
            reason = f"{error}; {len(scanning.samples)} samples begin before it, the rest is lost"
            broken = Bad(name, error.offset, reason)
        after = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{path} changed while it was read: index it when nothing writes to it")
    return scanning.finish(before.st_size, digest.hexdigest(), broken)


def is_junk_member(name: str) -> bool:
    """Whether a member was left by a file manager or an archive, not by who made the samples."""
    *folders, file = name.split("/")
    return any(map(is_junk_folder, folders)) or is_system_file(file)


class _Scanning:
    """State of a scan: the samples so far; images are held for one batch only."""

    def __init__(self, name: str, options: ScanOptions) -> None:
        self.name, self.options = name, options
        self.pattern = group_pattern(options.group_regex)
        self.samples: dict[str, _Sample] = {}
        self._waiting: list[tuple[_Sample, bytes]] = []  # images to decode
        self._sums: list[npt.NDArray[np.int64]] = [np.empty((0, CHANNELS), np.int64)]
        self._images = self._junk = 0

    def is_junk(self, name: str) -> bool:
        """Whether a member is to be skipped, which is counted."""
        junk = is_junk_member(name)
        self._junk += junk
        return junk

    def take(self, member: Member) -> None:
        """Add a member to its sample.

        Raises:
            TarError: a name that is no key, a second member of one kind, too many samples.
        """
        key, suffix = key_suffix(member.name)
        if key.startswith("/") or key.endswith("/") or not key or ".." in key.split("/"):
            raise TarError(member.offset, f"{member.name!r} is refused: not a key inside the tar")
        labels = {
            "cls": "other",
            **dict.fromkeys(IMAGES, "image"),
            self.options.label_suffix: "cls",
        }
        kind = labels.get(suffix, suffix)
        sample = self.samples.setdefault(key, _Sample(member.offset))
        if kind in sample.kinds:
            raise TarError(member.offset, f"{member.name!r} is a second {kind} of the key {key!r}")
        if len(self.samples) > MAX_SAMPLES:
            raise TarError(member.offset, f"more than {MAX_SAMPLES} samples: cut the tar in parts")
        sample.kinds += (kind,)
        if kind == "image":
            data, number = member.body, self._images
            sample.image = _Image(number, member.name, member.data_offset, len(data), crc32(data))
            self._images += 1
            if data.startswith(JPEG_START) != (suffix != "png"):
                expected = "PNG" if suffix == "png" else "JPEG"
                sample.problem = f"{member.name!r}: not a {expected} (starts with {data[:4]!r})"
            self._waiting.append((sample, data))
            if len(self._waiting) == _BATCH:
                self._decode()
        try:
            if kind == "json":
                label, sample.fields = json_fields(member.body, self.options.label_field)
                sample.label = label or sample.label
            elif kind == "cls" and self.options.label_field is None:
                sample.label = class_text(member.body)
        except ValueError as error:
            sample.problem = f"{member.name!r}: {error}"

    def _decode(self) -> None:
        pixels, refused = decode_all([data for _, data in self._waiting])
        self._sums.append(pixels.sum(axis=(1, 2), dtype=np.int64))
        for i, reason in refused.items():
            sample = self._waiting[i][0]
            assert sample.image is not None
            sample.problem = sample.problem or f"{sample.image.name!r}: {reason}"
        self._waiting.clear()

    def finish(self, size: int, xxh3: str, broken: Bad | None) -> Scan:
        """Return the result; a sample that lacks a kind of member that others have is bad."""
        self._decode()
        members = frozenset(kind for s in self.samples.values() for kind in s.kinds) - {"image"}
        kinds = members & {"cls", "json"}
        bad: list[Bad] = []
        good: list[tuple[_Image, Sequence[Any]]] = []
        for key, sample in self.samples.items():
            try:
                good.append(self._row(key, sample, kinds))
            except ValueError as error:
                bad.append(Bad(self.name, sample.offset, str(error)))
        good.sort(key=lambda pair: pair[0].number)
        columns = zip(*(row for _, row in good), strict=True) if good else [()] * len(SCANNED)
        table = pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, SCANNED, strict=True)], SCANNED
        )
        sums = np.concatenate(self._sums)[[image.number for image, _ in good]].sum(axis=0)
        return Scan(
            table,
            kinds,
            size,
            xxh3,
            sums.tolist(),
            bad[:MAX_LISTED],
            len(bad),
            self._junk,
            broken,
            unread=members - kinds,
        )

    def _row(
        self, key: str, sample: _Sample, kinds: frozenset[str]
    ) -> tuple[_Image, Sequence[Any]]:
        """Image and SCANNED row of a sample.

        Raises:
            ValueError: the sample is not usable.
        """
        if sample.problem:
            raise ValueError(sample.problem)
        image, fields = sample.image, sample.fields
        if image is None:
            raise ValueError(f"key {key!r} has {', '.join(sorted(sample.kinds))} and no image")
        if missing := sorted(kinds - set(sample.kinds)):
            raise ValueError(f"key {key!r} has no {', '.join(missing)}, other samples have")
        stem = key.rpartition("/")[2]
        try:
            name, slide = read_name(stem), fields.slide
            if self.pattern is None:
                slide = slide or name.slide
            own_source = fields.source if self.pattern is None else None
            path = f"{self.name}/{image.name}"
            source = own_source or source_image(
                path if self.pattern is None else key, name, slide, self.pattern
            )
        except DataError as error:
            raise ValueError(str(error)) from None
        patient, site = barcode(slide or source) or (None, None)
        if self.pattern is None:
            patient = patient or name.patient
        row = (
            sample.label,
            image.offset,
            image.size,
            image.crc32,
            source,
            slide,
            fields.patient or patient,
            fields.site or site,
            name.x if fields.x is None else fields.x,
            name.y if fields.y is None else fields.y,
            fields.mpp,
            path,
        )
        return image, row
