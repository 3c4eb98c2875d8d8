"""Checks one shard: its two files as bytes, and every sample against its sidecar row."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from shards.duplicates import Prints, prints
from shards.members import Member, TarError, read_members
from shards.output import shard_files
from shards.png import PngError, inflate, store, unfilter
from shards.schema import CHANNELS, NO_LABEL, SIDECAR, DatasetCard, Shard, key
from shards.split import GROUPS

_KEY = re.compile(r"s(\d{9})")
_LABEL = re.compile(rb"0|[1-9]\d{0,5}")
_BATCH = 256
_CHUNK = 1 << 20
_PER_FILE = 20  # problems listed of one file; all are counted


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
    """What the checks found, and what they counted on the way."""

    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # problems by file
    labels: Counter[tuple[str, int]] = field(default_factory=Counter)  # samples by split and label
    sums: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)  # of RGB values, by split
    keys: dict[str, list[int]] = field(default_factory=dict)  # by shard
    groups: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # (split, value)
    prints: dict[str, list[Prints]] | None = None  # by split; None: duplicates are not looked for

    def add(self, file: str, offset: int | None, what: str) -> None:
        self.counts[file] += 1
        if self.counts[file] <= _PER_FILE:
            self.problems.append(Problem(file, offset, what))


@dataclass(frozen=True)
class _Sample:
    png: Member
    key: int
    label: int


def check_shard(
    root: Path, card: DatasetCard, split: str, shard: Shard, findings: Findings
) -> None:
    """Check the tar and the sidecar of `shard`; problems and counts go to `findings`."""
    tar, sidecar = shard_files(root, shard.name)
    has_tar = _check_bytes(tar, shard.size, shard.xxh3, findings)
    has_sidecar = _check_bytes(sidecar, shard.sidecar_size, shard.sidecar_xxh3, findings)
    rows = _read_rows(sidecar, shard.count, findings) if has_sidecar else None
    for name in GROUPS if rows else ():
        values = {(split, value) for value in (rows or {})[name] if value is not None}
        findings.groups.setdefault(name, set()).update(values)
    if has_tar:
        _check_samples(tar, card, split, shard, rows, findings)


def _check_bytes(path: Path, size: int, xxh3: str, findings: Findings) -> bool:
    """Whether the file is there; its size and hash are compared with the card's."""
    if not path.is_file():
        findings.add(path.name, None, "missing; pack the data set again, or copy the file back")
        return False
    found = path.stat().st_size
    if found != size:
        findings.add(path.name, min(found, size), f"{found} bytes, {size} were written")
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != xxh3:
        findings.add(path.name, None, f"hash {digest.hexdigest()}, {xxh3} was written: altered")
    return True


def _read_rows(path: Path, count: int, findings: Findings) -> dict[str, list[Any]] | None:
    """The columns of a sidecar, if it is one of `count` rows."""
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != count:
                findings.add(path.name, None, f"{file.metadata.num_rows} rows, expected {count}")
                return None
            if not file.schema_arrow.equals(SIDECAR):
                findings.add(path.name, None, "the columns are not those of the format")
                return None
            columns: dict[str, list[Any]] = file.read().to_pydict()
    except (pa.ArrowException, OSError, ValueError) as error:  # a string may not be UTF-8
        findings.add(path.name, None, f"not readable as Parquet: {error}")
        return None
    if any(len(column) != count for column in columns.values()):
        findings.add(path.name, None, f"a column has not {count} values")
        return None
    return columns


def _check_samples(
    tar: Path, card: DatasetCard, split: str, shard: Shard, rows: Any, findings: Findings
) -> None:
    seen, batch = 0, []
    keys = findings.keys.setdefault(shard.name, [])
    try:
        for sample in _samples(tar, card):
            if rows and seen < shard.count:
                _compare(tar.name, sample, {name: rows[name][seen] for name in rows}, findings)
            seen += 1
            keys.append(sample.key)
            findings.labels[split, sample.label] += 1
            batch.append(sample.png)
            if len(batch) == _BATCH:
                _decode(tar.name, card.png, split, batch, findings)
                batch = []
    except TarError as error:
        lost = shard.count - seen
        findings.add(tar.name, error.offset, f"{error}; {lost} of {shard.count} samples lost")
    else:
        if seen != shard.count:
            findings.add(tar.name, None, f"{seen} samples, expected {shard.count}")
    _decode(tar.name, card.png, split, batch, findings)


def _samples(tar: Path, card: DatasetCard) -> Iterator[_Sample]:
    """Pairs of `KEY.png` and `KEY.cls`, or `KEY.png` alone in an unlabelled set."""
    members = read_members(tar)
    for png in members:
        match = _KEY.fullmatch(png.name.removesuffix(".png"))
        if match is None or not png.name.endswith(".png"):
            raise TarError(png.offset, f"member {png.name!r}, expected s000000000.png")
        label = NO_LABEL
        if card.labelled:
            label = _label(png, next(members, None), card)
        yield _Sample(png, int(match[1]), label)


def _label(png: Member, member: Member | None, card: DatasetCard) -> int:
    expected = png.name.removesuffix(".png") + ".cls"
    if member is None or member.name != expected:
        found = member.name if member else "the end"
        raise TarError(png.offset, f"{png.name!r} is followed by {found!r}, expected {expected!r}")
    if not _LABEL.fullmatch(member.body) or int(member.body) >= len(card.classes):
        raise TarError(
            member.offset, f"class {member.body[:16]!r}, expected 0 to {len(card.classes) - 1}"
        )
    return int(member.body)


def _compare(file: str, sample: _Sample, row: dict[str, Any], findings: Findings) -> None:
    found = {
        "key": key(sample.key),
        "label": sample.label,
        "offset": sample.png.data_offset,
        "size": len(sample.png.body),
        "crc32": zlib.crc32(sample.png.body),
    }
    for name, value in found.items():
        if row[name] != value:
            what = f"{sample.png.name!r} has {name} {value}, its sidecar row {row[name]}"
            findings.add(file, sample.png.offset, what)


def _decode(file: str, mode: str, split: str, pngs: list[Member], findings: Findings) -> None:
    """Decode a batch, check the stored layout, and add up the channels."""
    good, raws, keys = [], [], []
    for png in pngs:
        try:
            raws.append(inflate(png.body))
            good.append(png)
            keys.append(int(png.name[1:10]))
        except PngError as error:
            findings.add(file, png.offset, f"{png.name!r}: {error}")
    pixels = unfilter(raws)
    summed = np.add.reduce(pixels, axis=0, dtype=np.int64).reshape(-1, CHANNELS).sum(axis=0)
    findings.sums[split] = findings.sums.get(split, np.zeros(CHANNELS, np.int64)) + summed
    if findings.prints is not None and keys:
        findings.prints.setdefault(split, []).append(prints(keys, pixels))
    for png, layout in zip(good, store(pixels) if mode == "stored" else (), strict=False):
        if png.body != layout.tobytes():
            findings.add(file, png.offset, f"{png.name!r} is not in the stored layout")
