"""Log what packing collected from a source, and what it packed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.console import log, printable, table
from shards.pack.plan import Plan
from shards.pack.resume import ShardRecord
from shards.pack.tasks import PackTask
from shards.schema import DatasetMetadata
from shards.sources.groups import UNKNOWN, describe_groups, group_facts, unknown_warning
from shards.sources.source import Collection, Membership
from shards.sources.splits import GROUPS, leak_warning, leaks

_SHOWN = 5
_EXAMPLES = 3  # paths per reason


def log_collection(collection: Collection) -> None:
    """Log counts and notes of a collection, and warn of flaws such as groups that cross splits."""
    memberships, count = collection.memberships, len(collection.patches)
    log.info(f"{collection.root}: {count:,} patches")
    groups = group_facts(collection.patches, collection.rule)
    for line in (*collection.notes[:1], *describe_groups(groups), *collection.notes[1:]):
        log.info(line)
    if collection.hidden or collection.ignored:
        log.info(
            f"not looked at: {collection.hidden} hidden, {collection.ignored} notes or system files"
        )
    warnings = list(collection.warnings)
    for kind in GROUPS:
        names = ((member.split, getattr(member, kind)) for member in memberships)
        if crossing := leaks((split, name) for split, name in names if name):
            warnings.append(leak_warning(kind, crossing))
    unknown = groups.patches.get(UNKNOWN, 0)
    if unknown:
        warnings.append(unknown_warning(unknown, count))
    elif len({member.source for member in memberships}) == count > 1:
        warnings.append(
            "every patch is its own source image: no leakage between splits can be seen and no "
            "interval by source image computed; name the source with --group-regex"
        )
    for warning in warnings:
        log.warning(warning)


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
    _log_skipped(skipped["first"], skipped["count"])
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


def log_task(
    task: PackTask, plan: Plan, records: Sequence[ShardRecord], out: Path, seconds: float
) -> None:
    """Log what one task packed, and the command to run when all have ended."""
    packed, bad = sum(r.count for r in records), sum(r.bad for r in records)
    log.info(
        f"{task}: {len(records)} of {len(plan.shards)} shards are finished; {packed + bad:,} read, "
        f"{packed:,} packed, {bad:,} skipped; {seconds:.1f} s"
    )
    _log_skipped([pair for record in records for pair in record.bad_first], bad)
    log.info(f"when all tasks have ended: python -m shards.merge {out}")


def _log_skipped(listed: Sequence[Sequence[str]], total: int) -> None:
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
