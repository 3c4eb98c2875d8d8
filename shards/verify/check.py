"""Checks one shard: its two files as bytes, and every sample against its sidecar row."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from deflate import crc32

from shards.codec.images import decode_all
from shards.codec.png import MAX_PNG_BYTES, PngError, inflate, store, unfilter
from shards.codec.tar_reader import Member, TarError, read_members
from shards.schema import FOREIGN, NO_LABEL, SIDECAR, DatasetMetadata, Shard, key
from shards.sources.splits import GROUPS
from shards.verify.findings import Findings

_KEY = re.compile(r"s(\d{9})")
_LABEL = re.compile(rb"0|[1-9]\d{0,5}")
_BATCH = 256
_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Sample:
    png: Member
    key: int
    label: int


def check_shard(
    root: Path, metadata: DatasetMetadata, split: str, shard: Shard, findings: Findings
) -> None:
    """Check the tar and the sidecar of `shard`; problems and counts go to `findings`."""
    tar, sidecar = shard.tar(root), shard.sidecar(root)
    name = tar.name if shard.path is None else f"{shard.name} ({shard.path})"
    has_tar = _check_bytes(tar, name, shard.size, shard.xxh3, findings)
    has_sidecar = _check_bytes(
        sidecar, sidecar.name, shard.sidecar_size, shard.sidecar_xxh3, findings
    )
    rows = _read_rows(sidecar, shard.count, findings) if has_sidecar else None
    for group in GROUPS if rows else ():
        values = {(split, value) for value in (rows or {})[group] if value is not None}
        findings.groups.setdefault(group, set()).update(values)
    if has_tar and metadata.png == FOREIGN:
        _check_images(tar, name, split, shard, rows or {}, findings)
    elif has_tar:
        _check_samples(tar, metadata, split, shard, rows, findings)


def _check_bytes(path: Path, name: str, size: int, xxh3: str, findings: Findings) -> bool:
    """Whether the file is there; its size and hash are compared with dataset.json's."""
    if not path.is_file():
        findings.add(name, None, "missing; pack the data set again, or copy the file back")
        return False
    found = path.stat().st_size
    if found != size:
        findings.add(name, min(found, size), f"{found} bytes, {size} were written")
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != xxh3:
        findings.add(name, None, f"hash {digest.hexdigest()}, {xxh3} was written: altered")
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
    tar: Path, metadata: DatasetMetadata, split: str, shard: Shard, rows: Any, findings: Findings
) -> None:
    seen, batch = 0, []
    keys = findings.keys.setdefault(shard.name, [])
    try:
        for sample in _samples(tar, metadata):
            if rows and seen < shard.count:
                _compare(tar.name, sample, {name: rows[name][seen] for name in rows}, findings)
            seen += 1
            keys.append(sample.key)
            findings.labels[split, sample.label] += 1
            batch.append(sample.png)
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


def _samples(tar: Path, metadata: DatasetMetadata) -> Iterator[_Sample]:
    """Pairs of `KEY.png` and `KEY.cls`, or `KEY.png` alone in an unlabelled set."""
    members = read_members(tar)
    for png in members:
        match = _KEY.fullmatch(png.name.removesuffix(".png"))
        if match is None or not png.name.endswith(".png"):
            raise TarError(png.offset, f"member {png.name!r}, expected s000000000.png")
        label = NO_LABEL
        if metadata.labelled:
            label = _label(png, next(members, None), metadata)
        yield _Sample(png, int(match[1]), label)


def _label(png: Member, member: Member | None, metadata: DatasetMetadata) -> int:
    expected = png.name.removesuffix(".png") + ".cls"
    if member is None or member.name != expected:
        found = member.name if member else "the end"
        raise TarError(png.offset, f"{png.name!r} is followed by {found!r}, expected {expected!r}")
    if not _LABEL.fullmatch(member.body) or int(member.body) >= len(metadata.classes):
        raise TarError(
            member.offset, f"class {member.body[:16]!r}, expected 0 to {len(metadata.classes) - 1}"
        )
    return int(member.body)


def _compare(file: str, sample: _Sample, row: dict[str, Any], findings: Findings) -> None:
    found = {
        "key": key(sample.key),
        "label": sample.label,
        "offset": sample.png.data_offset,
        "size": len(sample.png.body),
        "crc32": crc32(sample.png.body),
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
    findings.count(split, keys, pixels)
    for png, layout in zip(good, store(pixels) if mode == "stored" else (), strict=False):
        if png.body != layout.tobytes():
            findings.add(file, png.offset, f"{png.name!r} is not in the stored layout")


def _check_images(
    tar: Path, name: str, split: str, shard: Shard, rows: dict[str, list[Any]], findings: Findings
) -> None:
    """Every image of a foreign tar that its rows point to.

    What lies between them the scan checked that made the rows: the hash of the tar says that it is
    still the same.
    """
    keys = findings.keys.setdefault(shard.name, [])
    lines = []
    for values in zip(*rows.values(), strict=True):
        line = dict(zip(rows, values, strict=True))
        if _sensible(line):
            lines.append(line)
        else:
            findings.add(f"{shard.name}.parquet", None, f"the row of {line['key']!r} is no sample")
    with open(tar, "rb") as file:
        for start in range(0, len(lines), _BATCH):
            batch = lines[start : start + _BATCH]
            bodies = [_read(file, line) for line in batch]
            numbers = [int(line["key"][1:]) for line in batch]
            pixels, refused = decode_all(bodies)
            for i, (line, body) in enumerate(zip(batch, bodies, strict=True)):
                wrong = "its checksum differs" if crc32(body) != line["crc32"] else ""
                if why := wrong or refused.get(i):
                    findings.add(name, line["offset"], f"{line['path']!r}: {why}")
                findings.labels[split, line["label"]] += 1
            keys += numbers
            findings.count(split, numbers, pixels)


def _sensible(row: dict[str, Any]) -> bool:
    place = row["offset"] >= 0 and 0 < row["size"] <= MAX_PNG_BYTES
    return place and _KEY.fullmatch(row["key"]) is not None


def _read(file: BinaryIO, row: dict[str, Any]) -> bytes:
    file.seek(row["offset"])
    return file.read(row["size"])
