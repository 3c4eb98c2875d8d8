"""Check one shard: its two files as bytes, and every sample against its sidecar row."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from deflate import crc32

from common.files import hash_file
from shards.codec.images import decode_all
from shards.codec.png import MAX_PNG_BYTES, Pixels, PngError, inflate, store, unfilter
from shards.codec.tar_reader import Member, TarError, read_members
from shards.schema import CHANNELS, FOREIGN, NO_LABEL, DatasetMetadata, Shard, decode_sidecar, key
from shards.sources.splits import GROUPS
from shards.verify.duplicates import Fingerprints, fingerprints

_KEY = re.compile(r"s(\d{9})")
_LABEL = re.compile(rb"0|[1-9]\d{0,5}")
_PER_FILE = 20  # problems listed per file; all are counted
_BATCH = 256


class Row(msgspec.Struct, frozen=True):
    """A row of a sidecar; see `shards.schema.SIDECAR`."""

    key: str
    label: int
    offset: int
    size: int
    crc32: int
    source: str
    slide: str | None
    patient: str | None
    path: str


@dataclass(frozen=True)
class Problem:
    file: str
    offset: int | None  # byte in the file, where there is one
    what: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f" at byte {self.offset}"
        return f"{self.file}{place}: {self.what}"


@dataclass
class Findings:
    """Problems, and what is counted on the way for the checks of the whole data set."""

    problems: list[Problem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)  # by file
    labels: Counter[tuple[str, int]] = field(default_factory=Counter)  # samples by split and label
    sums: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # of RGB values, by split
    keys: dict[str, list[int]] = field(default_factory=dict)  # by shard
    groups: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # (split, name) by kind
    fingerprints: dict[str, list[Fingerprints]] | None = None  # by split; None: not taken

    def add(self, file: str, offset: int | None, what: str) -> None:
        self.problem_counts[file] += 1
        if self.problem_counts[file] <= _PER_FILE:
            self.problems.append(Problem(file, offset, what))

    def add_patches(self, split: str, keys: list[int], pixels: Pixels) -> None:
        """Add up the channels of (n, 32, 32, 3) decoded patches, and take their fingerprints."""
        summed = np.add.reduce(pixels, axis=0, dtype=np.int64).reshape(-1, CHANNELS).sum(axis=0)
        self.sums[split] = self.sums.get(split, np.zeros(CHANNELS, np.int64)) + summed
        if self.fingerprints is not None and keys:
            self.fingerprints.setdefault(split, []).append(fingerprints(keys, pixels))


def check_shard(
    root: Path, metadata: DatasetMetadata, split: str, shard: Shard, findings: Findings
) -> None:
    """Check the tar and the sidecar of `shard`; problems and counts go to `findings`."""
    tar, sidecar = shard.tar(root), shard.sidecar(root)
    name = tar.name if shard.path is None else f"{shard.name} ({shard.path})"
    has_tar = _check_bytes(tar, name, shard.size, shard.xxh3, findings)
    rows: list[Row] = []
    if _check_bytes(sidecar, sidecar.name, shard.sidecar_size, shard.sidecar_xxh3, findings):
        try:
            table = decode_sidecar(sidecar.read_bytes(), shard.count)
            rows = msgspec.convert(table.to_pylist(), list[Row])
        except ValueError as error:
            findings.add(sidecar.name, None, str(error))
    for kind in GROUPS:
        # a source that is the path of its patch is unknown
        names = {
            (split, name) for row in rows if (name := getattr(row, kind)) not in (None, row.path)
        }
        findings.groups.setdefault(kind, set()).update(names)
    if has_tar and metadata.png == FOREIGN:
        _check_images(tar, name, split, shard, rows, findings)
    elif has_tar:
        _check_samples(tar, metadata, split, shard, rows, findings)


def _check_bytes(path: Path, name: str, size: int, xxh3: str, findings: Findings) -> bool:
    """Compare size and hash of a file with those in dataset.json; False where it is missing."""
    if not path.is_file():
        findings.add(name, None, "missing; pack the data set again, or copy the file back")
        return False
    actual = path.stat().st_size
    if actual != size:
        findings.add(name, min(actual, size), f"{actual} bytes, {size} were written")
    if (digest := hash_file(path)) != xxh3:
        findings.add(name, None, f"hash {digest}, {xxh3} was written: altered")
    return True


def _check_samples(
    tar: Path,
    metadata: DatasetMetadata,
    split: str,
    shard: Shard,
    rows: list[Row],
    findings: Findings,
) -> None:
    """Check every member of a tar of ours; without `rows` they are not compared."""
    seen, batch = 0, []
    keys = findings.keys.setdefault(shard.name, [])
    try:
        for png, number, label in _samples(tar, metadata):
            if seen < len(rows):
                _compare(tar.name, png, number, label, rows[seen], findings)
            seen += 1
            keys.append(number)
            findings.labels[split, label] += 1
            batch.append(png)
            if len(batch) == _BATCH:
                _decode(tar.name, metadata.png, split, batch, findings)
                batch = []
    except TarError as error:
        lost = shard.count - seen
        findings.add(tar.name, error.offset, f"{error}; {lost} of {shard.count} samples lost")
    else:
        if seen != shard.count:
            findings.add(tar.name, None, f"{seen} samples, expected {shard.count}")
    _decode(tar.name, metadata.png, split, batch, findings)


def _samples(tar: Path, metadata: DatasetMetadata) -> Iterator[tuple[Member, int, int]]:
    """Yield the PNG, key number and label of every sample: `KEY.png`, and `KEY.cls` if labelled."""
    members = read_members(tar)
    for png in members:
        match = _KEY.fullmatch(png.name.removesuffix(".png"))
        if match is None or not png.name.endswith(".png"):
            raise TarError(png.offset, f"member {png.name!r}, expected s000000000.png")
        if not metadata.labelled:
            yield png, int(match[1]), NO_LABEL
            continue
        member, expected = next(members, None), png.name.removesuffix(".png") + ".cls"
        if member is None or member.name != expected:
            follower = member.name if member else "the end"
            reason = f"{png.name!r} is followed by {follower!r}, expected {expected!r}"
            raise TarError(png.offset, reason)
        if not _LABEL.fullmatch(member.body) or int(member.body) >= len(metadata.classes):
            reason = f"class {member.body[:16]!r}, expected 0 to {len(metadata.classes) - 1}"
            raise TarError(member.offset, reason)
        yield png, int(match[1]), int(member.body)


def _compare(file: str, png: Member, number: int, label: int, row: Row, findings: Findings) -> None:
    actual = {
        "key": key(number),
        "label": label,
        "offset": png.data_offset,
        "size": len(png.body),
        "crc32": crc32(png.body),
    }
    for name, value in actual.items():
        if (recorded := getattr(row, name)) != value:
            what = f"{png.name!r} has {name} {value}, its sidecar row {recorded}"
            findings.add(file, png.offset, what)


def _decode(file: str, mode: str, split: str, pngs: list[Member], findings: Findings) -> None:
    """Decode a batch, check the stored layout, and add up the channels."""
    good, raws = [], []
    for png in pngs:
        try:
            raws.append(inflate(png.body))
            good.append(png)
        except PngError as error:
            findings.add(file, png.offset, f"{png.name!r}: {error}")
    pixels = unfilter(raws)
    findings.add_patches(split, [int(png.name[1:10]) for png in good], pixels)
    for png, layout in zip(good, store(pixels) if mode == "stored" else (), strict=False):
        if png.body != layout.tobytes():
            findings.add(file, png.offset, f"{png.name!r} is not in the stored layout")


def _check_images(
    tar: Path, name: str, split: str, shard: Shard, rows: list[Row], findings: Findings
) -> None:
    """Check every image of a foreign tar that its rows point to.

    The indexing scan checked the bytes between the images; the tar's hash covers them.
    """
    keys = findings.keys.setdefault(shard.name, [])
    sound = []
    for row in rows:
        if row.offset >= 0 and 0 < row.size <= MAX_PNG_BYTES and _KEY.fullmatch(row.key):
            sound.append(row)
        else:
            findings.add(f"{shard.name}.parquet", None, f"the row of {row.key!r} is no sample")
    with open(tar, "rb") as file:
        for start in range(0, len(sound), _BATCH):
            batch = sound[start : start + _BATCH]
            bodies = []
            for row in batch:
                file.seek(row.offset)
                bodies.append(file.read(row.size))
            numbers = [int(row.key[1:]) for row in batch]
            pixels, refused = decode_all(bodies)
            for i, (row, body) in enumerate(zip(batch, bodies, strict=True)):
                altered = "its checksum differs" if crc32(body) != row.crc32 else ""
                if reason := altered or refused.get(i):
                    findings.add(name, row.offset, f"{row.path!r}: {reason}")
                findings.labels[split, row.label] += 1
            keys += numbers
            findings.add_patches(split, numbers, pixels)
