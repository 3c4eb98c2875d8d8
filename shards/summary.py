"""What the pack command prints: what the scan found, and what was packed."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shards.plan import Plan
from shards.schema import DatasetCard
from shards.sources import Patch, Survey
from shards.split import GROUPS, leaks

_SHOWN = 5
_NUMBER = re.compile(r"[\d,]+(\.\d+)?%?")


def printable(name: str) -> str:
    """A name as it is, or escaped where it would move the cursor or break the line."""
    return name if name.isprintable() else ascii(name)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as needed; the first row is the heading, numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width)
            if cell.strip("%").replace(",", "").replace(".", "").isdigit()
            else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_survey(root: Path, found: Survey) -> None:
    """What the scan found and left out, and what it warns of."""
    print(f"{root}: {len(found.patches):,} patches")
    for note in found.notes:
        print(note)
    if found.hidden or found.ignored:
        print(f"not looked at: {found.hidden} hidden, {found.ignored} notes or system files")
    warnings = list(found.warnings)
    for name in GROUPS:
        members = {(p.split, value) for p in found.patches if (value := getattr(p, name))}
        if crossing := leaks(members):
            warnings.append(leak_warning(name, crossing))
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
    """Patches and groups by split and class; shards, bytes, rate, and what was skipped."""
    patches = [patch for shard in plan.shards for patch in shard.patches]
    groups = {name: _groups(patches, name) for name in GROUPS}
    kinds = [name for name, found in groups.items() if found]
    if all(patch.slide == patch.source for patch in patches):
        kinds.remove("source")
    rows = [("split", "class", "patches", "share", *(f"{kind}s" for kind in kinds))]
    for name, part in card.splits.items():
        labels: list[str | None] = [*card.classes] or [None]
        counts = part.class_counts or [part.count]
        for label, count in zip(labels, counts, strict=True):
            share = count / max(1, _total(card, label))
            cells = [f"{groups[kind][name, label]:,}" for kind in kinds]
            shown = "-" if label is None else printable(label)
            rows.append((name, shown, f"{count:,}", f"{share:.1%}", *cells))
    shards = [shard for split in card.splits.values() for shard in split.shards]
    total = sum(split.count for split in card.splits.values())
    size = sum(shard.size + shard.sidecar_size for shard in shards)
    print(table(rows))
    print(
        f"{total:,} patches in {len(shards)} shards, {size / 1e6:,.1f} MB; {seconds:.1f} s, "
        f"{total / seconds:,.0f} patches/s; {card.provenance['skipped']['count']} skipped"
    )


def _groups(patches: list[Patch], kind: str) -> Counter[tuple[str, str | None]]:
    """How many patients, slides or sources are known, by split and class."""
    found = {(p.split, p.label, getattr(p, kind)) for p in patches}
    return Counter((split, label) for split, label, name in found if name is not None)


def _total(card: DatasetCard, label: str | None) -> int:
    """Patches of a class in all splits; of everything without one."""
    if label is None:
        return sum(split.count for split in card.splits.values())
    return sum(split.class_counts[card.classes.index(label)] for split in card.splits.values())
