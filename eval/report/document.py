"""What a report says before it is Markdown, HTML or LaTeX: plain text, never markup.

Each writer (`markdown`, `latex`, `page`) escapes all of it in its own way.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MISSING = "–"
NOT_MEASURED = "not measured"
MAX_TEXT = 400
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would compute when a table is pasted there


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    """Cells are plain text: the first column to the left, the others to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Verdict:
    """What may be said of one question: what could have been seen at all, a word, what it means,
    the numbers behind it."""

    question: str
    before: str  # the minimal detectable difference; nothing where there is none
    word: str
    meaning: str
    numbers: str


@dataclass(frozen=True)
class Picture:
    """A PNG of a run, copied beside the report as figures/NAME and into the page."""

    name: str
    file: Path
    caption: str


@dataclass(frozen=True)
class Chart:
    """An SVG of `eval.report.svg`, written as figures/NAME and drawn in the page."""

    name: str
    title: str
    svg: str  # "" where nothing was measured
    caption: str


@dataclass(frozen=True)
class Atlas:
    """Points to hover and filter, in the page only: `eval.report.atlas` has the fields."""

    name: str
    data: dict[str, Any]
    caption: str


Part = Text | Bullets | Code | Table | Verdict | Picture | Chart | Atlas


@dataclass(frozen=True)
class Section:
    level: int  # 2 or 3
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Document:
    title: str
    lead: str
    sections: Sequence[Section]


def shown(text: object) -> str:
    """Untrusted text as one printable line of at most 400 characters; what a spreadsheet would
    take for a formula gets an apostrophe in front."""
    line = "".join(c if c.isprintable() else " " for c in str(text)).strip()
    if len(line) > MAX_TEXT:
        line = line[: MAX_TEXT - 1] + "…"
    return f"'{line}" if line.startswith(FORMULA) else line


def number(value: Any, digits: int = 3) -> str:
    """A finite number with so many digits after the point; a dash for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return f"{value:,.{digits}f}"


def mean_sd(values: Iterable[Any], digits: int = 3) -> str:
    """Mean ± sample standard deviation of the numbers among them; the mean alone where there is
    one number or all are equal; a dash for none."""
    known = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not known:
        return MISSING
    mean = number(statistics.fmean(known), digits)
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{mean} ± {spread:.{digits}f}" if spread > 0 else mean
