"""Scan the tars of another tool, and write their sidecars and `dataset.json`."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from common.console import log, printable, progress, table
from common.errors import DataError
from common.files import atomic_file
from common.machine import usable_cores
from shards.foreign.collect import Collection, Tar, collect, find_tars
from shards.foreign.provenance import IndexOptions, Provenance, Skipped, is_complete
from shards.foreign.scan import Scan, ScanOptions, scan_tar
from shards.schema import (
    CHANNELS,
    FOREIGN,
    MAX_LISTED,
    METADATA_NAME,
    NO_LABEL,
    SIDECAR,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    channel_mean,
    dumps_metadata,
    encode_sidecar,
    key,
    load_metadata,
    mean_splits,
    shard_name,
)
from shards.sources.names import source_rule
from shards.sources.source import Groups
from shards.sources.splits import (
    GROUPS,
    UNKNOWN,
    describe_groups,
    leak_warning,
    leaks,
    unknown_sources,
    unknown_warning,
)
from shards.sources.values import label_warnings, mpp_warnings, name_warnings

_FEW = 200 << 20  # bytes: scanning them takes about as long as starting processes
_SHOWN = 20
_FEW_CLASSES = 10


def index_tars(source: str, out: Path, options: IndexOptions | None = None) -> DatasetMetadata:
    """Scan the tars of `source` (see `find_tars`) and write sidecars and metadata into `out`.

    An `out` that holds the index of the same tars with the same options is left as it is.

    Raises:
        DataError: a tar that cannot be read to its end, more bad samples than `skip_bad`, labels
            that do not fit, or an `out` that holds a data set; nothing was written.
    """
    options = options or IndexOptions()
    tars = find_tars(source, options.split)
    if (out / METADATA_NAME).exists():
        if is_complete(source, out, tars, options):
            log.info(f"{out} is complete already, from the same tars and options: nothing to do")
            return load_metadata(out)
        raise DataError(
            f"{out} already holds a data set, of other tars or other options, or tars have changed "
            f"since; choose another OUT, or remove it"
        )
    scanned = list(zip(tars, _scan_all(tars, options), strict=True))
    skipped = _refuse_bad(source, [scan for _, scan in scanned], options.skip_bad)
    collection = collect(source, scanned, options.label_field, options.names)
    ranges, first = {}, 0
    for split, scans in collection.splits.items():
        count = sum(len(scan.table) for _, scan in scans)
        ranges[split] = [first, first + count]
        first += count
    provenance = Provenance(
        source=Path(source).name,
        label_field=options.label_field,
        ignored=list(options.ignore),
        label_suffix=options.own_label_suffix,
        classes=options.names or UNSET,
        group_regex=options.group_regex,
        tars={split: [tar.name for tar, _ in scans] for split, scans in collection.splits.items()},
        key_ranges=ranges,
        skipped=skipped,
        empty=[tar.name for tar, scan in scanned if not len(scan.table)],
        sources=_groups(collection, options),
    )
    metadata = _write(out, collection, provenance)
    if junk := sum(scan.junk for _, scan in scanned):
        log.info(f"not looked at: {junk:,} members that a file manager left (._*, __MACOSX, ...)")
    _log_summary(out, metadata, collection, provenance)
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
    """Yield the index of a tar and its scan, as they are finished."""
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


def _refuse_bad(source: str, scans: list[Scan], skip: int) -> Skipped:
    """List the bad samples for the provenance, if they are few enough to be left out.

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
        raise DataError(f"{text}\nLeave them out with: --skip-bad {total}")
    if total:
        log.warning(f"left out: {text}")
    return Skipped(total, bad[:MAX_LISTED])


def _groups(collection: Collection, options: IndexOptions) -> Groups:
    """Count the samples by the kind of their group, with an example of each kind."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for scan in (scan for scans in collection.splits.values() for _, scan in scans):
        table = scan.table
        columns = {kind: table[kind].is_valid() for kind in ("patient", "slide")}
        columns["source"] = pc.not_equal(table["source"], table["path"])
        columns[UNKNOWN] = pa.chunked_array([np.ones(len(table), bool)])
        rest = np.ones(len(table), bool)
        for kind, mask in columns.items():
            rows = np.flatnonzero(rest & mask.to_numpy())
            rest[rows] = False
            counts[kind] += len(rows)
            if len(rows) and kind not in examples:
                row = table.slice(rows[0], 1).to_pylist()[0]
                examples[kind] = [row["path"], kind, row["path" if kind == UNKNOWN else kind]]
    return Groups(
        rule=source_rule(options.group_regex),
        patches={kind: count for kind, count in counts.items() if count},
        examples=list(examples.values()),
    )


def _write(out: Path, collection: Collection, provenance: Provenance) -> DatasetMetadata:
    """Write the sidecars, then dataset.json."""
    out.mkdir(parents=True, exist_ok=True)
    for split, scans in collection.splits.items():
        for i in range(len(scans)):
            if (path := out / f"{shard_name(split, i)}.parquet").exists():
                raise DataError(f"{path} exists: remove it, or choose another OUT")
    splits: dict[str, SplitMetadata] = {}
    classes = collection.classes
    for split, scans in collection.splits.items():
        number, shards = provenance.key_ranges[split][0], []
        counts = np.zeros(len(classes), np.int64)
        for i, (tar, scan) in enumerate(scans):
            labels = collection.labels(scan)
            if classes:
                counts += np.bincount(labels[labels != NO_LABEL], minlength=len(classes))
            shards.append(_write_sidecar(out, shard_name(split, i), tar, scan, labels, number))
            number += len(labels)
        splits[split] = SplitMetadata(sum(s.count for s in shards), counts.tolist(), shards)
    averaged = [scan for name in mean_splits(splits) for _, scan in collection.splits[name]]
    sums = [sum(scan.channel_sums[c] for scan in averaged) for c in range(CHANNELS)]
    metadata = DatasetMetadata(
        png=FOREIGN,
        classes=classes,
        splits=splits,
        channel_mean=channel_mean(sums, sum(len(scan.table) for scan in averaged)),
        provenance=msgspec.to_builtins(provenance),
    )
    with atomic_file(out / METADATA_NAME) as file:
        file.write(dumps_metadata(metadata))
    return metadata


def _write_sidecar(
    out: Path, name: str, tar: Tar, scan: Scan, labels: npt.NDArray[np.int32], first: int
) -> Shard:
    """Write the sidecar of a scan: its rows with label numbers, and keys from `first` on."""
    keys = pa.array([key(i) for i in range(first, first + len(labels))], pa.string())
    columns = [keys, pa.array(labels, pa.int32()), *scan.table.drop_columns(["label"]).columns]
    with atomic_file(out / f"{name}.parquet") as file:
        file.write(encode_sidecar(pa.table(columns, schema=SIDECAR)))
    # relative where the tar is inside `out`, so that both can move; links are kept
    path, root = Path(os.path.abspath(tar.path)), Path(os.path.abspath(out))  # noqa: PTH100
    place = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return Shard(name, len(labels), scan.size, scan.xxh3, file.size, file.xxh3, place)


def _log_summary(
    out: Path, metadata: DatasetMetadata, collection: Collection, provenance: Provenance
) -> None:
    rows = [("split", "tars", "samples", "bytes")]
    for name, split in metadata.splits.items():
        size = sum(shard.size for shard in split.shards)
        rows.append((name, f"{len(split.shards):,}", f"{split.count:,}", f"{size:,}"))
    log.info(table(rows))
    if metadata.classes:
        log.info(table(_class_rows(metadata)))
    else:
        log.info(_why_unlabelled(collection))
    if collection.first:
        first = collection.first
        log.info(f"labels begin at {first}: class {first} of the tars is label 0 here")
    for line in describe_groups(provenance.sources):
        log.info(line)
    for warning in _warnings(metadata, collection):
        log.warning(warning)
    for kind in GROUPS:
        members: set[tuple[str, str]] = set()
        for name, scans in collection.splits.items():
            for rows in (scan.table for _, scan in scans):
                # a source that is the path of its sample is unknown
                named = pc.if_else(pc.equal(rows[kind], rows["path"]), None, rows[kind])
                members |= {(name, group) for group in pc.unique(named).drop_null().to_pylist()}
        if crossing := leaks(members):
            log.warning(leak_warning(kind, crossing))
    if provenance.empty:
        log.info(f"tars without a sample, left out: {', '.join(provenance.empty)}")
    log.info(f"{out}: {len(metadata.classes)} classes; the tars stay where they are")


def _why_unlabelled(collection: Collection) -> str:
    """Say why no sample has a label, and what could be one."""
    scans = [scan for scans in collection.splits.values() for _, scan in scans]
    read = frozenset().union(*(scan.kinds for scan in scans))
    unread = frozenset().union(*(scan.unread for scan in scans)) - {"other"}
    if "cls" in read:
        return "unlabelled: every label is -1"
    hints = ["--label-field FIELD takes a field of KEY.json"] if "json" in read else []
    hints += [f"--label-suffix {suffix} takes KEY.{suffix}" for suffix in sorted(unread)]
    return f"unlabelled: no sample has a KEY.cls{''.join(f'; {hint}' for hint in hints)}"


def _class_rows(metadata: DatasetMetadata) -> list[Sequence[str]]:
    """Return the table of samples by split and class; `-`: unlabelled."""
    rows: list[Sequence[str]] = [("split", "class", "samples", "share")]
    for name, split in metadata.splits.items():
        counts = dict(zip(metadata.classes, split.class_counts, strict=True))
        counts |= {"-": unlabelled} if (unlabelled := split.count - sum(counts.values())) else {}
        for label, count in counts.items():
            rows.append((name, printable(label), f"{count:,}", f"{count / split.count:.1%}"))
    return rows


def _warnings(metadata: DatasetMetadata, collection: Collection) -> list[str]:
    """Warn of classes without a sample and of values that may be meant otherwise."""
    splits = metadata.splits.values()
    totals = {
        name: sum(split.class_counts[i] for split in splits)
        for i, name in enumerate(metadata.classes)
    }
    tables = [scan.table for scans in collection.splits.values() for _, scan in scans]
    counts = {
        field: Counter(name for rows in tables for name in rows[field].to_pylist() if name)
        for field in ("patient", "slide", "site")
    }
    mpp = Counter(value for rows in tables for value in rows["mpp"].to_pylist())
    filled = {name: count for name, count in totals.items() if count}
    mend = "write each in one way"  # there is no option to mend tars
    warnings = [*label_warnings(filled, mend), *name_warnings(counts, None), *mpp_warnings(mpp)]
    if empty := [name for name, count in totals.items() if not count]:
        shown = f"{empty[:_FEW_CLASSES]}{', ...' if len(empty) > _FEW_CLASSES else ''}"
        warnings.append(
            f"{len(empty):,} of {len(totals):,} classes have no sample ({shown}): name the classes "
            f"by --classes"
        )
    if metadata.classes and (unlabelled := sum(s.count for s in splits) - sum(totals.values())):
        warnings.append(f"{unlabelled:,} samples of label -1 are unlabelled: probes leave them out")
    if unknown := unknown_warning(*unknown_sources(metadata.provenance)):
        warnings.append(unknown)
    return warnings
