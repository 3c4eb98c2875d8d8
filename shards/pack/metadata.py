"""The end of a pack: `dataset.json` from the records of all shards, and a summary in the log."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from common.console import log, printable, table
from common.errors import DataError
from common.files import atomic_file
from shards import schema
from shards.pack.plan import PackOptions, Plan
from shards.pack.resume import ShardRecord, finish, record_complete, shard_files
from shards.schema import (
    MAX_LISTED,
    METADATA_NAME,
    DatasetMetadata,
    Shard,
    SplitMetadata,
    read_columns,
)
from shards.sources.source import ClassCount, Collection, Membership, Origin, Patch
from shards.sources.splits import GROUPS, group_facts

_SHOWN_BAD = 20
_SHOWN = 5
_EXAMPLES = 3  # paths per reason
_CONVERTIBLE = re.compile(r"--convert|expected 32x32|^8-bit |not a PNG but a JPEG")


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """The number of items, and the first of them (at most MAX_LISTED)."""

    count: int
    first: list[list[str]]


class Provenance(Origin, frozen=True, kw_only=True):
    """Where the patches of a data set come from and what was done to them."""

    source: str  # name of the folder
    patches: int  # of the plan, skipped ones included
    seed: int
    shard_size: int
    group_regex: str | None
    order: str = "within each split by the stable argsort of the raw PCG64 stream of the seed"
    key_ranges: dict[str, list[int]]  # by split: first key, one past the last
    skipped: Listed  # path and reason of files that are not usable patches
    repeated: Listed  # later and earlier path of patches with the same bytes


def without_skipped(out: Path, collection: Collection, records: list[ShardRecord]) -> Collection:
    """Return the collection without skipped patches, so that counts of groups cover packed patches
    only."""
    if not any(record.bad for record in records):
        return collection
    packed: set[str] = set()
    for record in records:
        if record.count:
            _, sidecar = shard_files(out, record.name)
            packed.update(read_columns(sidecar, ["path"])["path"].to_pylist())
    patches = [patch for patch in collection.patches if patch.path in packed]
    return replace(collection, patches=patches)


def write_metadata(
    out: Path,
    collection: Collection,
    plan: Plan,
    records: list[ShardRecord],
    options: PackOptions,
) -> DatasetMetadata:
    """Write `dataset.json`, and remove the files that only an unfinished pack needs.

    Args:
        collection: of the packed patches; see `without_skipped`.
        records: in the order of the plan.

    Raises:
        DataError: too many bad patches, or a shard without any usable one.
    """
    bad = [*collection.refused, *(pair for record in records for pair in record.bad_first)]
    bad_count = len(collection.refused) + sum(record.bad for record in records)
    if bad_count > options.skip_bad:
        raise too_many_bad(collection.root, bad, bad_count)
    if empty := [record.name for record in records if not record.count]:
        raise DataError(f"{collection.root}: no usable patch is left for {', '.join(empty)}")
    origin = collection.origin
    if origin.splits:
        draw = msgspec.structs.replace(origin.splits, achieved=_achieved(collection.patches))
        origin = msgspec.structs.replace(origin, splits=draw)
    facts = group_facts(collection.patches, collection.rule)
    origin = msgspec.structs.replace(origin, sources=facts)
    provenance = Provenance(
        **msgspec.structs.asdict(origin),
        source=collection.name,
        patches=sum(len(shard.patches) for shard in plan.shards),
        seed=options.seed,
        shard_size=options.shard_size,
        group_regex=options.group_regex,
        key_ranges={split: list(keys) for split, keys in plan.key_ranges.items()},
        skipped=Listed(count=bad_count, first=[list(pair) for pair in bad[:MAX_LISTED]]),
        repeated=exact_duplicates(out, records),
    )
    splits = {name: _split_of(name, records) for name in plan.key_ranges}
    averaged = schema.mean_splits(splits)
    sums = np.sum([r.channel_sums for r in records if r.split in averaged], axis=0).tolist()
    metadata = DatasetMetadata(
        png=options.png,
        classes=plan.classes,
        splits=splits,
        channel_mean=schema.channel_mean(sums, sum(splits[name].count for name in averaged)),
        provenance=msgspec.to_builtins(provenance),
    )
    with atomic_file(out / METADATA_NAME) as file:
        file.write(schema.dumps_metadata(metadata))
    record_complete(out, plan)
    finish(out)
    return metadata


def _split_of(name: str, records: list[ShardRecord]) -> SplitMetadata:
    """Sum up the shards of a split."""
    of_split = [record for record in records if record.split == name]
    return SplitMetadata(
        count=sum(record.count for record in of_split),
        class_counts=np.sum([record.class_counts for record in of_split], axis=0).tolist(),
        shards=msgspec.convert(of_split, list[Shard], from_attributes=True),
    )


def too_many_bad(
    source: str, bad: Sequence[tuple[str, str]], total: int, every: bool = False
) -> DataError:
    """Make an error that lists paths and reasons, and says what to do.

    Args:
        every: whether no other patch is left.
    """
    convertible = any(_CONVERTIBLE.search(reason) for _, reason in bad)
    shown = "".join(f"  {path!r}: {reason}\n" for path, reason in bad[:_SHOWN_BAD])
    more = f"  ... and {total - _SHOWN_BAD} more\n" if total > _SHOWN_BAD else ""
    return DataError(
        f"{source}: {total} file{'s' if total > 1 else ''} cannot be used as patches\n{shown}{more}"
        f"Mend or remove them (if shards were already written, pack again with --overwrite)"
        + ("; no other is left" if every else f", or go on without them: --skip-bad {total}")
        + ("; images of other sizes and kinds can be taken by --convert" if convertible else "")
    )


def _achieved(patches: list[Patch]) -> dict[str, dict[str, ClassCount]]:
    members = Counter((patch.split, patch.label or "", patch.group) for patch in patches)
    counts: dict[str, dict[str, ClassCount]] = {}
    for (split, label, _), count in members.items():
        of_class = counts.setdefault(split, {}).setdefault(label, ClassCount())
        of_class.patches += count
        of_class.groups += 1
    return counts


def exact_duplicates(out: Path, records: list[ShardRecord]) -> Listed:
    """Count the patches that have the bytes of an earlier one.

    The 64-bit fingerprints only choose which patches are read again and compared by a 128-bit hash.
    With `--png stored` equal bytes are equal pixels; with `keep` an image that two programs saved
    is not recognised.
    """
    fingerprints = np.concatenate([record.fingerprint_array for record in records])
    order = np.argsort(fingerprints, kind="stable")
    same = fingerprints[order[1:]] == fingerprints[order[:-1]]
    suspected = np.zeros(len(fingerprints), bool)
    suspected[order[1:][same]] = suspected[order[:-1][same]] = True
    ends = np.cumsum([record.count for record in records])
    seen: dict[bytes, str] = {}
    count = 0
    pairs: list[list[str]] = []
    for record, rows in zip(records, np.split(suspected, ends[:-1]), strict=True):
        for path, digest in _digests(out, record.name, np.flatnonzero(rows)):
            if digest not in seen:
                seen[digest] = path
                continue
            count += 1
            if len(pairs) < MAX_LISTED:
                pairs.append([path, seen[digest]])
    return Listed(count=count, first=pairs)


def _digests(out: Path, name: str, rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
    """Yield path and hash of the PNGs at `rows` of a shard, read again from the tar."""
    if not len(rows):
        return
    tar, sidecar = shard_files(out, name)
    table = read_columns(sidecar, ["path", "offset", "size"]).take(rows)
    with open(tar, "rb") as file:
        for row in table.to_pylist():
            data = os.pread(file.fileno(), row["size"], row["offset"])
            yield row["path"], xxhash.xxh3_128_digest(data)


def log_summary(
    metadata: DatasetMetadata, memberships: set[Membership], seconds: float | None = None
) -> None:
    """Log patches and groups by split and class; shards, bytes, and what was skipped.

    Args:
        memberships: those of the packed patches.
        seconds: duration of the whole pack, to log its rate; None: no rate.
    """
    shards = metadata.shards
    total = sum(split.count for split in metadata.splits.values())
    size = sum(shard.size + shard.sidecar_size for shard in shards)
    log.info(table(_rows(metadata, memberships)))
    skipped, repeated = metadata.provenance["skipped"], metadata.provenance["repeated"]
    log.info(
        f"{total:,} patches in {len(shards)} shards, {size / 1e6:,.1f} MB"
        + (f"; {seconds:.1f} s, {total / seconds:,.0f} patches/s" if seconds else "")
    )
    log.info(
        f"{total + skipped['count']:,} read, {total:,} packed, {skipped['count']:,} skipped, "
        f"{repeated['count']:,} repeated"
    )
    log_skipped(skipped["first"], skipped["count"])
    if repeated["count"]:
        pairs = [f"{printable(a)} = {printable(b)}" for a, b in repeated["first"][:_SHOWN]]
        more = ", ..." if repeated["count"] > _SHOWN else ""
        log.info(f"repeated, packed with the same bytes as another: {', '.join(pairs)}{more}")


def _rows(metadata: DatasetMetadata, memberships: set[Membership]) -> list[Sequence[str]]:
    """Return the table of patches, with a column per kind of group that occurs."""
    counts: dict[str, Counter[tuple[str, str | None]]] = {}  # of groups, by split and class
    for kind in GROUPS:
        names = {(member.split, member.label, getattr(member, kind)) for member in memberships}
        counts[kind] = Counter((split, label) for split, label, name in names if name is not None)
    same = all(member.slide == member.source for member in memberships)
    kinds = [kind for kind in GROUPS if counts[kind] and not (same and kind == "source")]
    rows: list[Sequence[str]] = [
        ("split", "class", "patches", "share", *(f"{kind}s" for kind in kinds))
    ]
    labels: list[str | None] = [*metadata.classes] or [None]
    by_split = {name: s.class_counts or [s.count] for name, s in metadata.splits.items()}
    totals = [sum(patches) for patches in zip(*by_split.values(), strict=True)]
    for split, patches in by_split.items():
        for label, count, total in zip(labels, patches, totals, strict=True):
            name = "-" if label is None else printable(label)
            of_groups = [f"{counts[kind][split, label]:,}" for kind in kinds]
            rows.append((split, name, f"{count:,}", f"{count / max(1, total):.1%}", *of_groups))
    return rows


def log_skipped(listed: Sequence[Sequence[str]], total: int) -> None:
    """Log each reason with its count and examples.

    Args:
        listed: path and reason of the first files, up to 100 per shard.
    """
    by_reason: dict[str, list[str]] = {}
    for path, reason in listed:
        by_reason.setdefault(reason, []).append(printable(path))
    shown = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_SHOWN]
    for reason, paths in shown:
        examples = ", ".join(paths[:_EXAMPLES]) + (", ..." if len(paths) > _EXAMPLES else "")
        log.info(f"skipped: {len(paths):,} x {reason} ({examples})")
    if (others := total - sum(len(paths) for _, paths in shown)) > 0:
        log.info(f"skipped: {others:,} more; dataset.json lists the first {len(listed):,}")
