"""Charts drawn as SVG that follow the colours of the page, and stand alone as files.

`eval.report.charts` chooses what is charted. All text is escaped. Colours are CSS classes: the page
styles them, and a file of its own brings `STYLE` along.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from eval.drawing.figures import DARK, LIGHT
from eval.report.document import Forest, Kind

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 46
CHAR = 6.4  # approximate width of a character
LEGEND_ROW = 20
FOREST_WIDTH, NAMES = 720, 300  # of a forest: its width, and where its names end
LINE, NAME_CHARS, NAME_LINES = 15, 44, 4
COLOURS = 8
KIND_COLOURS: dict[Kind, int] = {
    "ours": 0,
    "ceiling": 1,
    "other": 3,
    "baseline": 7,
    "good": 2,
    "bad": 1,
    "open": 0,
}

RULES = (
    """
svg text{font:12px system-ui,sans-serif;fill:currentColor}
svg .axis{stroke:currentColor;stroke-width:1;fill:none}
svg .grid{stroke:currentColor;stroke-opacity:.14;fill:none}
svg .mark{stroke:currentColor;stroke-opacity:.6;stroke-dasharray:3 3;fill:none}
"""
    + "".join(f"svg .c{i}{{stroke:var(--c{i});fill:var(--c{i})}}" for i in range(COLOURS))
    + "svg .line{fill:none;stroke-width:1.8}svg .bar{stroke-width:1.4;fill:none}"
)


def palette(colours: Sequence[str]) -> str:
    """CSS variables --c0, --c1, ... of the colours."""
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


_DARK_FILE = f"color:#ddd;--paper:#16181c;background:#16181c;{palette(DARK)}"
STYLE = (
    f"<style>svg{{color:#222;--paper:#fff;background:#fff;{palette(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{svg{{{_DARK_FILE}}}}}{RULES}</style>"
)


@dataclass(frozen=True)
class Point:
    """A value with its interval in y, where it has one."""

    x: float
    y: float
    interval: tuple[float, float] | None = None

    @property
    def extent(self) -> tuple[float, ...]:
        """The y values that a chart has to show."""
        return (self.y, *(self.interval or ()))


@dataclass(frozen=True)
class Series:
    """Points under one name and colour, joined by a line, with a marker each."""

    name: str
    points: Sequence[Point]
    colour: int
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True)
class Axis:
    """Label and kind of an axis; `names` are those of the positions 0, 1, ..."""

    label: str
    names: Sequence[str] = ()
    log: bool = False
    marks: Sequence[float] = ()  # dashed lines across

    def transform(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)


@dataclass(frozen=True)
class _Scale:
    """From the data of an axis, `low` to `high` after its transform, to pixels."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float

    def pixel(self, value: float) -> float:
        share = (self.axis.transform(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Values and their labels."""
        if self.axis.names:
            return [(float(i), name) for i, name in enumerate(self.axis.names)]
        if self.axis.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            return [(v, f"{v:g}") for v in values if self.low <= math.log10(v) <= self.high]
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step)))
        return [(i * step, f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def _scale(axis: Axis, values: Sequence[float], start: float, end: float) -> _Scale:
    if axis.names:
        return _Scale(axis, -0.5, len(axis.names) - 0.5, start, end)
    transformed = [axis.transform(value) for value in (*values, *axis.marks)]
    low, high = min(transformed), max(transformed)
    margin = 0.06 * (high - low) or max(abs(high), 1e-3) * 0.1
    return _Scale(axis, low - margin, high + margin, start, end)


def plot(series: Sequence[Series], x: Axis, y: Axis, title: str) -> str:
    """Lines and points with their intervals; "" where no series has a point."""
    drawable = []
    for line in series:
        points = [point for point in line.points if x.shows(point.x) and y.shows(point.y)]
        if points:
            drawable.append(replace(line, points=points))
    if not drawable:
        return ""
    points = [point for line in drawable for point in line.points]
    across = _scale(x, [point.x for point in points], LEFT, WIDTH - RIGHT)
    heights = [value for point in points for value in point.extent]
    up = _scale(y, heights, HEIGHT - BOTTOM, TOP)
    legend, legend_rows = _legend(drawable)
    marks = "".join(_draw(line, across, up) for line in drawable)
    content = _axis_below(across, HEIGHT - BOTTOM) + _axis_left(up) + marks + legend
    return _svg(content, HEIGHT + LEGEND_ROW * legend_rows, title)


@dataclass(frozen=True)
class Placed:
    """A forest in place: positions along the axis from `start` to `end`."""

    ticks: Sequence[tuple[float, str]]
    marks: Sequence[float]
    rows: Sequence[tuple[float, tuple[float, float] | None]]  # value, ends of the interval


def place(forest: Forest, start: float, end: float) -> Placed:
    """Find the positions of everything that a forest draws."""
    values = [v for row in forest.rows for v in (row.value, *(row.interval or ()))]
    scale = _scale(Axis(forest.axis, marks=tuple(forest.marks)), values, start, end)
    rows = []
    for row in forest.rows:
        low, high = row.interval or (row.value, row.value)
        ends = (scale.pixel(low), scale.pixel(high)) if row.interval else None
        rows.append((scale.pixel(row.value), ends))
    ticks = [(scale.pixel(value), name) for value, name in scale.ticks()]
    return Placed(ticks, [scale.pixel(mark) for mark in forest.marks], rows)


def forest(forest: Forest) -> str:
    """A row per estimate: its name on the left, its interval on the right."""
    placed = place(forest, NAMES, FOREST_WIDTH - RIGHT)
    names = [textwrap.wrap(row.name, NAME_CHARS)[:NAME_LINES] for row in forest.rows]
    heights = [LINE * len(lines) + 10 for lines in names]
    bottom = sum(heights) + TOP
    content = []
    for x, text in placed.ticks:
        content.append(_path("grid", f"M{x:.1f} {TOP}V{bottom}"))
        content.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    content += [_path("mark", f"M{x:.1f} {TOP}V{bottom}") for x in placed.marks]
    y = float(TOP)
    for row, lines, height, (at, ends) in zip(
        forest.rows, names, heights, placed.rows, strict=True
    ):
        for i, line in enumerate(lines):
            place_of = f'x="{NAMES - 12}" y="{y + LINE * (i + 1):.1f}" text-anchor="end"'
            content.append(f"<text {place_of}>{escape(line)}</text>")
        middle, colour = y + height / 2, KIND_COLOURS[row.kind]
        if ends:
            content.append(_path(f"c{colour} bar", f"M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}"))
        content.append(f'<g class="c{colour}">{_marker(colour, at, middle)}</g>')
        y += height
    label = f'x="{(NAMES + FOREST_WIDTH - RIGHT) / 2}" y="{bottom + 34}" text-anchor="middle"'
    content.append(f"<text {label}>{escape(forest.axis)}</text>")
    return _svg("".join(content), bottom + BOTTOM, forest.title, FOREST_WIDTH)


def _axis_below(across: _Scale, bottom: float) -> str:
    content = [_path("axis", f"M{LEFT} {bottom}H{WIDTH - RIGHT}")]
    names = across.axis.names
    room = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    last = -math.inf
    for value, name in across.ticks():
        x = across.pixel(value)
        text = name[: int(room / CHAR)] if names else name
        half = len(text) * CHAR / 2
        content.append(_path("grid", f"M{x:.1f} {TOP}V{bottom}"))
        if x - half > last:  # no label over another
            last = x + half + 4
            content.append(
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>'
            )
    content += [
        _path("mark", f"M{across.pixel(mark):.1f} {TOP}V{bottom}") for mark in across.axis.marks
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = escape(across.axis.label)
    content.append(f'<text x="{middle}" y="{bottom + 36}" text-anchor="middle">{label}</text>')
    return "".join(content)


def _axis_left(up: _Scale) -> str:
    content = []
    for value, name in up.ticks():
        y = up.pixel(value)
        content.append(_path("grid", f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"))
        content.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
        )
    content += [
        _path("mark", f"M{LEFT} {up.pixel(mark):.1f}H{WIDTH - RIGHT}") for mark in up.axis.marks
    ]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    content.append(f"<text {turned}>{escape(up.axis.label)}</text>")
    return "".join(content)


def _draw(series: Series, across: _Scale, up: _Scale) -> str:
    pixels = [(across.pixel(point.x), up.pixel(point.y)) for point in series.points]
    colour = f"c{series.colour % COLOURS}"
    content = []
    if series.joined and len(pixels) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
        content.append(_path(f"{colour} line", f"M{path}"))
    for point, (x, y) in zip(series.points, pixels, strict=True):
        hint = f"{series.name}: {point.y:.4g}"
        if point.interval:
            low, high = point.interval
            hint += f" [{low:.4g}, {high:.4g}]"
            bar = f"M{x:.1f} {up.pixel(low):.1f}V{up.pixel(high):.1f}"
            content.append(_path(f"{colour} bar", bar))
        if series.marked:
            marker = _marker(series.colour, x, y)
            content.append(f'<g class="{colour}">{marker}<title>{escape(hint)}</title></g>')
    return "".join(content)


def _marker(index: int, x: float, y: float) -> str:
    """A circle, square, diamond or triangle: distinct without colour."""
    match index % 4:
        case 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        case 1:
            return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
        case 2:
            return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Every name once, below the chart, and the number of rows that they take."""
    x, row = float(LEFT), 0
    content = []
    for name, line in {line.name: line for line in series}.items():
        text = name[:48]
        width = 26 + CHAR * len(text)
        if x > LEFT and x + width > WIDTH - RIGHT:
            x, row = float(LEFT), row + 1
        y = HEIGHT + 8 + LEGEND_ROW * row
        marker = _marker(line.colour, x + 5, y - 4)
        content.append(f'<g class="c{line.colour % COLOURS}">{marker}</g>')
        content.append(f'<text x="{x + 15:.1f}" y="{y}">{escape(text)}</text>')
        x += width
    return "".join(content), row + 1


def _path(classes: str, path: str) -> str:
    return f'<path class="{classes}" d="{path}"/>'


def _svg(content: str, height: float, title: str, width: int = WIDTH) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )


def standalone(svg: str) -> str:
    """The same chart as a file of its own."""
    return svg.replace("<title>", f"{STYLE}<title>", 1) + "\n"
