"""What the pack command prints: what the scan found, and what was packed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.console import log, printable, table
from shards.pack.plan import Plan
from shards.pack.shard import Record
from shards.pack.tasks import PackTask
from shards.schema import DatasetMetadata
from shards.sources.folder import Group, Survey
from shards.sources.splits import GROUPS, leak_warning, leaks

_SHOWN = 5
_EXAMPLES = 3  # paths for each reason


def log_collection(root: Path, found: Survey) -> None:
    """What the scan found and left out, and what it warns of."""
    log.info(f"{root}: {len(found.patches):,} patches")
    for note in found.notes:
        log.info(note)
    if found.hidden or found.ignored:
        log.info(f"not looked at: {found.hidden} hidden, {found.ignored} notes or system files")
    warnings = list(found.warnings)
    for i, name in enumerate(GROUPS, 2):
        members = ((group[0], value) for group in found.groups if (value := group[i]))
        if crossing := leaks(members):
            warnings.append(leak_warning(name, crossing))
    if len({group[-1] for group in found.groups}) == len(found.patches) > 1:
        warnings.append(
            "every patch is its own source image: no leakage between splits can be seen and no "
            "interval by source image computed; name the source with --group-regex"
        )
    for warning in warnings:
        log.warning(warning)


def log_summary(metadata: DatasetMetadata, found: Survey, seconds: float | None = None) -> None:
    """Patches and groups by split and class; shards, bytes, and what was skipped; the rate where
    all of them were packed in so many seconds."""
    groups = {name: _count(found.groups, i) for i, name in enumerate(GROUPS, 2)}
    kinds = [name for name, counts in groups.items() if counts]
    if all(slide == source for _, _, _, slide, source in found.groups):
        kinds.remove("source")
    rows = [("split", "class", "patches", "share", *(f"{kind}s" for kind in kinds))]
    for name, part in metadata.splits.items():
        labels: list[str | None] = [*metadata.classes] or [None]
        counts = part.class_counts or [part.count]
        for label, count in zip(labels, counts, strict=True):
            share = count / max(1, _total(metadata, label))
            cells = [f"{groups[kind][name, label]:,}" for kind in kinds]
            shown = "-" if label is None else printable(label)
            rows.append((name, shown, f"{count:,}", f"{share:.1%}", *cells))
    shards = [shard for split in metadata.splits.values() for shard in split.shards]
    total = sum(split.count for split in metadata.splits.values())
    size = sum(shard.size + shard.sidecar_size for shard in shards)
    log.info(table(rows))
    skipped, repeated = metadata.provenance["skipped"], metadata.provenance["repeated"]
    log.info(
        f"{total:,} patches in {len(shards)} shards, {size / 1e6:,.1f} MB"
        + (f"; {seconds:.1f} s, {total / seconds:,.0f} patches/s" if seconds else "")
    )
    log.info(
        f"{total + skipped['count']:,} read, {total:,} packed, {skipped['count']:,} skipped, "
        f"{repeated['count']:,} repeated"
    )
    _print_skipped(skipped["first"], skipped["count"])
    if repeated["count"]:
        pairs = [f"{printable(a)} = {printable(b)}" for a, b in repeated["first"][:_SHOWN]]
        log.info(
            f"repeated, packed with the same bytes as another: {', '.join(pairs)}{_more(repeated)}"
        )


def log_task(
    part: PackTask, plan: Plan, records: Sequence[Record], out: Path, seconds: float
) -> None:
    """What one task packed, and what is to be done when all have."""
    packed, bad = sum(r.count for r in records), sum(r.bad for r in records)
    log.info(
        f"{part}: {len(records)} of {len(plan.shards)} shards are finished; {packed + bad:,} read, "
        f"{packed:,} packed, {bad:,} skipped; {seconds:.1f} s"
    )
    _print_skipped([pair for record in records for pair in record.bad_first], bad)
    log.info(f"when all tasks have ended: python -m shards.merge {out}")


def _print_skipped(listed: Sequence[Sequence[str]], total: int) -> None:
    """Each reason with how often and where it was met; a shard lists its first 100."""
    paths: dict[str, list[str]] = {}
    for path, reason in listed:
        paths.setdefault(reason, []).append(printable(path))
    shown = sorted(paths.items(), key=lambda item: -len(item[1]))[:_SHOWN]
    for reason, found in shown:
        examples = ", ".join(found[:_EXAMPLES]) + (", ..." if len(found) > _EXAMPLES else "")
        log.info(f"skipped: {len(found):,} x {reason} ({examples})")
    if (rest := total - sum(len(found) for _, found in shown)) > 0:
        log.info(f"skipped: {rest:,} more; dataset.json lists the first {len(listed):,}")


def _more(found: dict[str, Any]) -> str:
    return ", ..." if found["count"] > _SHOWN else ""


def _count(groups: Iterable[Group], place: int) -> Counter[tuple[str, str | None]]:
    """How many names are at `place`, by split and class."""
    found = {(group[0], group[1], group[place]) for group in groups}
    return Counter((split, label) for split, label, name in found if name is not None)


def _total(metadata: DatasetMetadata, label: str | None) -> int:
    """Patches of a class in all splits; of everything without one."""
    if label is None:
        return sum(split.count for split in metadata.splits.values())
    return sum(
        split.class_counts[metadata.classes.index(label)] for split in metadata.splits.values()
    )
