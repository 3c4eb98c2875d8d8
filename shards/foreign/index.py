"""Makes a data set of tars that another tool wrote, without copying or changing them.

One scan of every tar (`shards.foreign.scan`) gives its sidecar; dataset.json gives its place.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from common.console import progress, table
from common.errors import DataError
from common.files import atomic_file, sync_folder
from common.machine import usable_cores
from shards.codec.sidecar import parquet
from shards.foreign.collect import Found, collect
from shards.foreign.scan import MAX_LISTED, Scan, ScanOptions, scan_tar
from shards.foreign.tarlist import Tar, find_tars
from shards.schema import (
    CHANNELS,
    FOREIGN,
    METADATA_NAME,
    PATCH,
    SIDECAR,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    dumps_metadata,
    key,
    shard_name,
)
from shards.sources.splits import GROUPS, leak_warning, leaks

_FEW = 200 << 20  # bytes scanned in about the time that starting processes takes
_SHOWN = 20


@dataclass(frozen=True)
class IndexOptions(ScanOptions):
    """For --index: what the tars of another tool are."""

    split: str | None = None
    """Of all tars; default: what the name of each, or one of its folders, says."""
    classes: str | None = None
    """Names by label, as in normal,tumor. Default: the names in the labels, or the numbers."""
    skip_bad: int = 0
    """Go on without up to this many samples that are not usable; they are listed."""
    workers: int = 0
    """Processes; 0: one a usable core, or none beside this one when there is little to do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "skip_bad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.names is not None and ("" in self.names or len(set(self.names)) < len(self.names)):
            raise ValueError(f"--classes {self.classes!r} has an empty name, or one twice")

    @property
    def names(self) -> list[str] | None:
        return None if self.classes is None else self.classes.split(",")


def index_tars(source: str, out: Path, options: IndexOptions | None = None) -> DatasetMetadata:
    """Scan the tars of `source` (see `find_tars`) and write sidecars and metadata into `out`.

    Raises:
        DataError: a tar that cannot be read to its end, more bad samples than `skip_bad`, labels
            that do not fit, or an `out` that holds a data set; nothing was written.
    """
    options = options or IndexOptions()
    if (out / METADATA_NAME).exists():
        raise DataError(f"{out} already holds a data set; choose another OUT, or remove it")
    tars = find_tars(source, options.split)
    scans = _scan_all(tars, options)
    skipped = _refuse(source, scans, options.skip_bad)
    found = collect(source, list(zip(tars, scans, strict=True)), options.label_field, options.names)
    empty = [tar.name for tar, scan in zip(tars, scans, strict=True) if not len(scan.table)]
    said = _provenance(source, options, found, {"skipped": skipped, "empty": empty})
    metadata = _write(out, found, said)
    _print_summary(out, metadata, found)
    return metadata


def _scan_all(tars: list[Tar], options: IndexOptions) -> list[Scan]:
    sizes = [tar.path.stat().st_size for tar in tars]
    workers = options.workers or (1 if sum(sizes) < _FEW else usable_cores())
    scans: dict[int, Scan] = {}
    with progress("scanning", sum(sizes), "bytes") as advance:
        for i, scan in _scanned(tars, options, min(workers, len(tars))):
            scans[i] = scan
            advance(sizes[i])
    return [scans[i] for i in range(len(tars))]


def _scanned(tars: list[Tar], options: ScanOptions, workers: int) -> Iterator[tuple[int, Scan]]:
    """Scans and their places, as they are finished."""
    if workers <= 1:
        yield from ((i, scan_tar(tar.path, tar.name, options)) for i, tar in enumerate(tars))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(scan_tar, tar.path, tar.name, options): i for i, tar in enumerate(tars)
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise DataError(
                "a scanning process ended; if the memory ran out, use fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _refuse(source: str, scans: list[Scan], skip: int) -> dict[str, Any]:
    """What is left out, for dataset.json, where it is little enough to go on.

    Raises:
        DataError: more bad samples than `skip`, or a tar that cannot be read to its end.
    """
    if broken := [str(scan.broken) for scan in scans if scan.broken]:
        raise DataError("\n  ".join([f"{source}: {len(broken)} tars cannot be used", *broken]))
    bad = [str(bad) for scan in scans for bad in scan.bad]
    total = sum(scan.bad_count for scan in scans)
    lines = [f"{source}: {total:,} samples cannot be used", *bad[:_SHOWN]]
    if total > _SHOWN:
        lines.append(f"... and {total - _SHOWN:,} more")
    text = "\n  ".join(lines)
    if total > skip:
        raise DataError(f"{text}\nGo on without them: --skip-bad {total}")
    if total:
        print(f"left out: {text}", file=sys.stderr)
    return {"count": total, "first": bad[:MAX_LISTED]}


def _provenance(
    source: str, options: IndexOptions, found: Found, said: dict[str, Any]
) -> dict[str, Any]:
    ranges, first = {}, 0
    for split, scans in found.splits.items():
        count = sum(len(scan.table) for _, scan in scans)
        ranges[split] = [first, first + count]
        first += count
    return {
        "source": Path(source).name,
        "label_field": options.label_field,
        "ignored": list(options.ignore),
        "group_regex": options.group_regex,
        "tars": {split: [tar.name for tar, _ in scans] for split, scans in found.splits.items()},
        "key_ranges": ranges,
        **said,
    }


def _write(out: Path, found: Found, provenance: dict[str, Any]) -> DatasetMetadata:
    """Write the sidecars, then dataset.json."""
    out.mkdir(parents=True, exist_ok=True)
    for split, scans in found.splits.items():
        for i in range(len(scans)):
            if (path := out / f"{shard_name(split, i)}.parquet").exists():
                raise DataError(f"{path} exists: remove it, or choose another OUT")
    split_metadata: dict[str, SplitMetadata] = {}
    for split, scans in found.splits.items():
        number, shards = provenance["key_ranges"][split][0], []
        counts = np.zeros(len(found.classes), np.int64)
        for i, (tar, scan) in enumerate(scans):
            labels = found.labels(scan)
            if found.classes:
                counts += np.bincount(labels, minlength=len(counts))
            rows = _sidecar(scan.table, labels, number)
            shards.append(_publish(out, shard_name(split, i), tar, scan, rows))
            number += len(rows)
        split_metadata[split] = SplitMetadata(sum(s.count for s in shards), counts.tolist(), shards)
    metadata = DatasetMetadata(
        FOREIGN, found.classes, split_metadata, _channel_mean(found), provenance
    )
    with atomic_file(out / METADATA_NAME) as file:
        file.write(dumps_metadata(metadata))
    sync_folder(out)
    return metadata


def _sidecar(rows: pa.Table, labels: npt.NDArray[np.int32], first: int) -> pa.Table:
    """The rows with their labels as numbers and keys from `first` on."""
    keys = pa.array([key(i) for i in range(first, first + len(rows))], pa.string())
    columns = [keys, pa.array(labels, pa.int32()), *rows.drop_columns(["label"]).columns]
    return pa.table(columns, schema=SIDECAR)


def _publish(out: Path, name: str, tar: Tar, scan: Scan, rows: pa.Table) -> Shard:
    with atomic_file(out / f"{name}.parquet") as file:
        file.write(parquet(rows))
    place = _place(tar.path, out)
    return Shard(name, len(rows), scan.size, scan.xxh3, file.size, file.xxh3, place)


def _place(tar: Path, out: Path) -> str:
    """Relative to `out` where it lies inside, so that both can be moved; links stay links."""
    path, root = Path(os.path.abspath(tar)), Path(os.path.abspath(out))  # noqa: PTH100
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _channel_mean(found: Found) -> list[float]:
    """RGB in [0, 1] over the train split, or over everything when there is none."""
    every = [scan for scans in found.splits.values() for _, scan in scans]
    used = [scan for _, scan in found.splits.get("train", [])] or every
    values = 255 * PATCH * PATCH * sum(len(scan.table) for scan in used)
    return [sum(scan.channel_sums[c] for scan in used) / values for c in range(CHANNELS)]


def _print_summary(out: Path, metadata: DatasetMetadata, found: Found) -> None:
    rows = [("split", "tars", "samples", "bytes")]
    for split, part in metadata.splits.items():
        size = sum(shard.size for shard in part.shards)
        rows.append((split, f"{len(part.shards):,}", f"{part.count:,}", f"{size:,}"))
    print(table(rows))
    for group in GROUPS:
        members = {
            (split, name)
            for split, scans in found.splits.items()
            for _, scan in scans
            for name in pc.unique(scan.table[group]).drop_null().to_pylist()
        }
        if crossing := leaks(members):
            print(f"warning: {leak_warning(group, crossing)}", file=sys.stderr)
    if empty := metadata.provenance["empty"]:
        print(f"without a sample, left out: {', '.join(empty)}")
    print(f"{out}: {len(metadata.classes)} classes; the tars stay where they are")
