"""Measurements as aligned text and as plain JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.timing import Spread

Record = dict[str, Any]
CELL = "median (low..high)"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])])
        for first, *rest in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(f"  {line}" for line in lines)


def spread(values: Sequence[float]) -> Record:
    """Median, low, high and repeats, as they stand in the JSON."""
    return asdict(Spread.of(values))


def not_measured(reason: str) -> Record:
    """Stands in the place of a number; the reason says what would change that."""
    return {"not_measured": reason}


def cell(value: Record, form: str = ",.0f") -> str:
    """`median (low..high)`, or that there is none."""
    if "not_measured" in value:
        return "not measured"
    median, low, high = (format(value[name], form) for name in ("median", "low", "high"))
    return f"{median} ({low}..{high})"
