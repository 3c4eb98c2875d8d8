"""Charts as SVG that follow the colours of the page, and stand alone as files.

All text is escaped. Colours are classes: the page styles them; a file brings `STYLE` along.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
CHAR = 6.4  # width of a character of the font, about
COLOURS = 8

# Okabe and Ito's colours, darkened or lightened to 3:1 on white or on near-black
LIGHT = ("#0072B2", "#C04E00", "#00805F", "#B0558A", "#9A6B00", "#2B86BA", "#333333", "#757575")
DARK = ("#56B4E9", "#F28C4B", "#2FC79A", "#E29CC4", "#E6B233", "#8CCBF0", "#DDDDDD", "#A0A0A0")
RULES = (
    """
svg text{font:12px system-ui,sans-serif;fill:currentColor}
svg .axis{stroke:currentColor;stroke-width:1;fill:none}
svg .grid{stroke:currentColor;stroke-opacity:.14;fill:none}
svg .row{stroke:var(--paper);stroke-width:4;paint-order:stroke}
svg .mark{stroke:currentColor;stroke-opacity:.6;stroke-dasharray:3 3;fill:none}
"""
    + "".join(f"svg .c{i}{{stroke:var(--c{i});fill:var(--c{i})}}" for i in range(COLOURS))
    + "svg .line{fill:none;stroke-width:1.8}svg .bar{stroke-width:1.4;fill:none}"
)


def palette(colours: Sequence[str]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


_DARK_FILE = f"color:#ddd;--paper:#16181c;background:#16181c;{palette(DARK)}"
STYLE = (
    f"<style>svg{{color:#222;--paper:#fff;background:#fff;{palette(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{svg{{{_DARK_FILE}}}}}{RULES}</style>"
)


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float | None = None  # of an interval in y
    high: float | None = None


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]
    colour: int
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    label: str
    names: Sequence[str] = ()  # of the positions 0, 1, ...
    log: bool = False
    marks: Sequence[float] = ()  # dashed lines across

    def scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


@dataclass(frozen=True)
class _Frame:
    """Data to pixels of one axis."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (self.axis.scale(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        if self.axis.names:
            return [(float(i), name) for i, name in enumerate(self.axis.names)]
        if self.axis.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            there = [v for v in values if self.low <= math.log10(v) <= self.high]
            return [(v, f"{v:g}") for v in there]
        step = _step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step)))
        return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)


def plot(series: Sequence[Series], x: Axis, y: Axis, title: str) -> str:
    """Lines and points with their intervals; "" where no series has a point."""
    kept = [
        Series(s.name, [p for p in s.points if _drawable(p, x, y)], s.colour, s.joined, s.marked)
        for s in series
    ]
    kept = [s for s in kept if s.points]
    if not kept:
        return ""
    points = [point for s in kept for point in s.points]
    ends = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    across = _frame(x, [*(p.x for p in points), *x.marks], LEFT, WIDTH - RIGHT)
    up = _frame(y, [*ends, *y.marks], HEIGHT - BOTTOM, TOP)
    parts = [_axes(across, up), *(_draw(s, across, up) for s in kept)]
    legend, rows = _legend(kept)
    return _svg([*parts, legend], HEIGHT + 20 * rows, title)


def forest(rows: Sequence[tuple[str, Point]], x: Axis, title: str) -> str:
    """A row an estimate (the y of its point) with its interval, from left to right."""
    if not rows:
        return ""
    ends = [v for _, p in rows for v in (p.y, p.low, p.high) if v is not None]
    across = _frame(x, [*ends, *x.marks], LEFT, WIDTH - RIGHT)
    height = 34 * len(rows) + 12
    parts = [_ticks_below(across, height)]
    for i, (name, p) in enumerate(rows):
        y = 34 * i + 30
        at = across.at(p.y)
        said = f"{name}: {p.y:.4f}"
        if p.low is not None and p.high is not None:
            said += f", {p.low:.4f} to {p.high:.4f}"
            a, b = across.at(p.low), across.at(p.high)
            parts.append(f'<path class="c0 bar" d="M{a:.1f} {y}H{b:.1f}"/>')
        parts.append(f'<text class="row" x="{LEFT}" y="{y - 9}">{escape(name[:66])}</text>')
        parts.append(
            f'<rect class="c0" x="{at - 4:.1f}" y="{y - 4}" width="8" height="8">'
            f"<title>{escape(said)}</title></rect>"
        )
    return _svg(parts, height + BOTTOM, title)


def _drawable(p: Point, x: Axis, y: Axis) -> bool:
    positive = (not x.log or p.x > 0) and (not y.log or p.y > 0)
    return positive and math.isfinite(p.x) and math.isfinite(p.y)


def _frame(axis: Axis, values: Sequence[float], start: float, end: float) -> _Frame:
    if axis.names:
        return _Frame(axis, -0.5, len(axis.names) - 0.5, start, end)
    scaled = [axis.scale(value) for value in values]
    low, high = min(scaled), max(scaled)
    margin = 0.06 * (high - low) or max(abs(high), 1e-3) * 0.1
    return _Frame(axis, low - margin, high + margin, start, end)


def _axes(across: _Frame, up: _Frame) -> str:
    parts = [_ticks_below(across, HEIGHT - BOTTOM)]
    for value, name in up.ticks():
        y = up.at(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    parts += [
        f'<path class="mark" d="M{LEFT} {up.at(value):.1f}H{WIDTH - RIGHT}"/>'
        for value in up.axis.marks
    ]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(up.axis.label)}</text>")
    return "".join(parts)


def _ticks_below(across: _Frame, bottom: float) -> str:
    parts = [f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']
    room, last = (WIDTH - LEFT - RIGHT) / max(1, len(across.axis.names)), -math.inf
    for value, name in across.ticks():
        x, text = across.at(value), name if not across.axis.names else name[: int(room / CHAR)]
        half = len(text) * CHAR / 2
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        if x - half > last:  # no label over another
            last = x + half + 4
            text = escape(text)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    parts += [
        f'<path class="mark" d="M{across.at(value):.1f} {TOP}V{bottom}"/>'
        for value in across.axis.marks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = escape(across.axis.label)
    parts.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{label}</text>')
    return "".join(parts)


def _draw(series: Series, across: _Frame, up: _Frame) -> str:
    places = [(across.at(p.x), up.at(p.y)) for p in series.points]
    colour, parts = f"c{series.colour % COLOURS}", []
    if series.joined and len(places) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="{colour} line" d="{path}"/>')
    for p, (x, y) in zip(series.points, places, strict=True):
        said = f"{series.name}: {p.y:.4g}"
        if p.low is not None and p.high is not None:
            said += f" [{p.low:.4g}, {p.high:.4g}]"
            ends = f"M{x:.1f} {up.at(p.low):.1f}V{up.at(p.high):.1f}"
            parts.append(f'<path class="{colour} bar" d="{ends}"/>')
        if series.marked:
            shape = _marker(series.colour, x, y)
            parts.append(f'<g class="{colour}">{shape}<title>{escape(said)}</title></g>')
    return "".join(parts)


def _marker(index: int, x: float, y: float) -> str:
    """Told apart without colour: a circle, square, diamond, triangle."""
    match index % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Each name once, below the chart; how many rows it takes."""
    named = {s.name: s for s in series}
    x, row, parts = float(LEFT), 0, []
    for name, one in named.items():
        text = name[:48]
        width = 26 + CHAR * len(text)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, row = float(LEFT), row + 1
        y = HEIGHT + 8 + 20 * row
        marker = _marker(one.colour, x + 5, y - 4)
        parts.append(f'<g class="c{one.colour % COLOURS}">{marker}</g>')
        parts.append(f'<text x="{x + 15:.1f}" y="{y}">{escape(text)}</text>')
        x += width
    return "".join(parts), row + 1


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def standalone(svg: str) -> str:
    """The same chart as a file of its own."""
    return svg.replace("<title>", f"{STYLE}<title>", 1) + "\n"
