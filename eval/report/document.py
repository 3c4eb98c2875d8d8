"""The content of a report as plain text and numbers, free of any markup.

Each format of `eval.report.writers` escapes all of it in its own way.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from shards.codec.png import Pixels

MISSING = "–"
NOT_MEASURED = "not measured"
MAX_TEXT = 400
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet would compute when a table is pasted there


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    """Plain-text cells: the first column is aligned left, the others right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Missing:
    """What was not measured, and the command that measures it ("": eval.main of the run)."""

    what: str
    command: str


@dataclass(frozen=True)
class Verdict:
    """The answer to one planned question, in words."""

    question: str
    before: str  # the minimal detectable difference; "" where there is none
    word: str
    meaning: str
    numbers: str


@dataclass(frozen=True)
class Picture:
    """A PNG of a run, copied to figures/NAME beside the report and embedded in the page."""

    name: str
    file: Path
    title: str
    caption: str


@dataclass(frozen=True)
class Chart:
    """An SVG of `eval.report.svg`, written to figures/NAME and drawn in the page."""

    name: str
    svg: str
    title: str
    caption: str


Kind = Literal["ours", "ceiling", "other", "baseline", "good", "bad", "open"]


@dataclass(frozen=True)
class Estimate:
    """A row of a forest: an estimate with its interval, where it has one, and words on it."""

    name: str
    value: float
    interval: tuple[float, float] | None
    kind: Kind
    group: str = ""  # heading of the rows that share it
    word: str = ""  # the verdict
    sentence: str = ""  # what it means
    numbers: str = ""  # what it rests on


@dataclass(frozen=True)
class Forest:
    """Estimates with their intervals, a row each; as an SVG in figures/NAME and in the page."""

    name: str
    title: str
    axis: str
    rows: Sequence[Estimate]
    marks: Mapping[float, str]  # lines across, and what they mark
    caption: str
    signed: bool = False  # differences


@dataclass(frozen=True)
class Strip:
    """Images (n, side, side, 3) side by side, with a note below each."""

    label: str
    images: Pixels
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Strips:
    """Strips of equally many images under common headings; as a PNG in figures/NAME too."""

    name: str
    title: str
    headings: Sequence[str]  # as many as divide the images
    strips: Sequence[Strip]
    caption: str


class RunMap(msgspec.Struct, frozen=True, kw_only=True):
    """The points of one run in a map."""

    name: str
    shares: list[float]  # of the variance, of both components
    xy: list[int]  # x and y of every point in turns, 0 to `AtlasPoints.grid`


class AtlasPoints(
    msgspec.Struct, frozen=True, kw_only=True, rename={"labels": "class", "site_indices": "site"}
):
    """What the script of the page reads: a value per point in `key`, `source`, `labels` (indices
    into `classes`) and `site_indices` (indices into `sites`)."""

    runs: list[RunMap]
    grid: int
    key: list[str]
    source: list[str]
    labels: list[int]
    classes: list[str]
    site_indices: list[int]
    sites: list[str]
    sheet: str | None  # data URL of the thumbnails, `columns` in a row
    columns: int


@dataclass(frozen=True)
class Atlas:
    """A map to hover and filter, in the page only."""

    name: str
    points: AtlasPoints
    caption: str


Part = Text | Bullets | Code | Table | Missing | Picture | Chart | Forest | Strips | Atlas


@dataclass(frozen=True)
class Section:
    level: int  # 2 or 3
    title: str
    parts: Sequence[Part]
    folded: bool = False  # in the page, until it is opened


@dataclass(frozen=True)
class Document:
    title: str
    lead: str
    sections: Sequence[Section]
    verdicts: Sequence[Verdict] = ()

    @property
    def parts(self) -> list[Part]:
        return [part for section in self.sections for part in section.parts]


def shown(text: object) -> str:
    """Untrusted text as one printable line of at most 400 characters.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    line = "".join(c if c.isprintable() else " " for c in str(text)).strip()
    if len(line) > MAX_TEXT:
        line = line[: MAX_TEXT - 1] + "…"
    return f"'{line}" if line.startswith(FORMULA) else line


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` decimals; a dash for None."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def with_interval(value: float, interval: tuple[float, float] | None, form: str = ".3f") -> str:
    """A number, and its interval in brackets."""
    if interval is None:
        return f"{value:{form}} (no interval)"
    low, high = interval
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def mean_sd(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean ± sample standard deviation of the values that are not None.

    The mean alone where there is one value or all are equal; a dash where there is none.
    """
    measured = [value for value in values if value is not None]
    if not measured:
        return MISSING
    mean = number(statistics.fmean(measured), digits)
    deviation = statistics.stdev(measured) if len(measured) > 1 else 0.0
    return f"{mean} ± {deviation:.{digits}f}" if deviation > 0 else mean
