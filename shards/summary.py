"""What the pack command prints: what the scan found, and what was packed."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shards.plan import Plan
from shards.schema import DatasetCard
from shards.sources import Survey
from shards.split import leaks

_SHOWN = 5


def printable(name: str) -> str:
    """A name as it is, or escaped where it would move the cursor or break the line."""
    return name if name.isprintable() else ascii(name)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as needed; the first row is the heading, numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if cell.replace(",", "").isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_survey(root: Path, found: Survey) -> None:
    """What the scan found and left out, and what it warns of."""
    print(f"{root}: {len(found.patches):,} patches")
    if found.hidden or found.ignored:
        print(f"not looked at: {found.hidden} hidden, {found.ignored} notes or system files")
    warnings = list(found.warnings)
    crossing = leaks((patch.split, patch.source) for patch in found.patches)
    if crossing:
        warnings.append(leak_warning("source", crossing))
    sources = {patch.source for patch in found.patches}
    if len(sources) == len(found.patches) > 1:
        warnings.append(
            "every patch is its own source image: no leakage between splits can be seen and no "
            "interval by source image computed; name the source with --group-regex"
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def leak_warning(what: str, crossing: list[str]) -> str:
    """`N values of WHAT are in more than one split`, with examples."""
    shown = ", ".join(printable(group) for group in crossing[:_SHOWN])
    return (
        f"{len(crossing)} of the {what} groups are in more than one split ({shown}"
        f"{', ...' if len(crossing) > _SHOWN else ''}): scores on val and test will be too good"
    )


def print_summary(card: DatasetCard, plan: Plan, seconds: float) -> None:
    """Patches and source images by split and class; shards, bytes, rate, and what was skipped."""
    sources: Counter[tuple[str, str]] = Counter()
    patches = (patch for shard in plan.shards for patch in shard.patches)
    for split, label, _ in {(p.split, p.label or "", p.source) for p in patches}:
        sources[split, label] += 1
    rows = [("split", "class", "patches", "sources")]
    for name, part in card.splits.items():
        counts = zip(card.classes, part.class_counts, strict=True)
        for label, count in list(counts) or [("", part.count)]:
            shown = printable(label) or "-"
            rows.append((name, shown, f"{count:,}", f"{sources[name, label]:,}"))
    shards = [shard for split in card.splits.values() for shard in split.shards]
    total = sum(split.count for split in card.splits.values())
    size = sum(shard.size + shard.sidecar_size for shard in shards)
    print(table(rows))
    print(
        f"{total:,} patches in {len(shards)} shards, {size / 1e6:,.1f} MB; {seconds:.1f} s, "
        f"{total / seconds:,.0f} patches/s; {card.provenance['skipped']['count']} skipped"
    )
