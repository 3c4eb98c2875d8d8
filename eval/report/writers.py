"""A document as Markdown, as LaTeX tables, and as one HTML page.

All text is escaped. The page opens from the disk without network, fonts or other files: Jinja
escapes its text, data reach its script as JSON whose `<`, `>` and `&` are escaped, and its content
security policy allows what is inside and nothing else.
"""

import base64
import html
import io
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from eval.drawing.figures import DARK, LIGHT
from eval.report.document import (
    Atlas,
    Bullets,
    Chart,
    Code,
    Document,
    Forest,
    Kind,
    Missing,
    Part,
    Picture,
    Strips,
    Table,
    Text,
    shown,
    with_interval,
)
from eval.report.pictures import png, row
from eval.report.svg import KIND_COLOURS, RULES, palette, place

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#|~$!^])")
_LATEX_TEXT = "backslash asciicircum asciitilde less greater bar quotedbl asciigrave quotesingle"
_LATEX_MATH = "pm times geq leq mu rho lambda"
_LATEX: dict[str, str | int | None] = {
    **{char: f"\\{char}" for char in "{}$&#%_"},
    **{char: f"{{{char}}}" for char in "[]*-"},  # "[" and "*" are arguments of the "\\" before
    **{c: rf"\text{name}{{}}" for c, name in zip("\\^~<>|\"`'", _LATEX_TEXT.split(), strict=True)},
    **{c: rf"$\{name}$" for c, name in zip("±×≥≤μρλ", _LATEX_MATH.split(), strict=True)},
    **{"−": "$-$", "–": "--", "…": r"\ldots{}", "\N{NO-BREAK SPACE}": "~"},
}
_LATEX_HEADER = (
    "% Needs \\usepackage{booktabs,textcomp}; for names beyond Latin, XeLaTeX or LuaLaTeX."
)
KINDS: dict[Kind, str] = {  # of the rows of a forest that are no verdicts
    "ours": "trained here",
    "other": "encoder trained elsewhere",
    "ceiling": "ceiling: trained on the labels",
    "baseline": "baseline without training",
}


def to_markdown(document: Document) -> str:
    """The whole document; pictures are expected in figures/ beside it."""
    blocks = [f"# {escape_markdown(document.title)}", escape_markdown(document.lead)]
    for section in document.sections:
        blocks.append("#" * section.level + " " + escape_markdown(section.title))
        blocks += map(_markdown_part, section.parts)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_part(part: Part) -> str:
    match part:
        case Text(text):
            return _markdown(text)
        case Bullets(items):
            return "\n".join(f"- {_markdown(item)}" for item in items)
        case Code(text):
            longest_run = max(map(len, re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest_run + 1)
            return f"{fence}\n{text}\n{fence}"
        case Table(title, header, rows, caption):
            lines = [_markdown_row(header), f"| --- |{' ---: |' * (len(header) - 1)}"]
            lines += map(_markdown_row, rows)
            blocks = [f"**{_markdown(title)}**", "\n".join(lines), _markdown(caption)]
            return "\n\n".join(block for block in blocks if block)
        case Forest(name, title, rows=rows, caption=caption):
            bullets = []
            for row in (row for row in rows if row.numbers):
                word = f" **{_markdown(row.word).capitalize()}.**" if row.word else ""
                words = f"{row.sentence} {row.numbers}".strip()
                bullets.append(f"- {_markdown(row.name)}.{word} {_markdown(words)}")
            picture = _markdown_picture(name, title, caption)
            return "\n\n".join(filter(None, (picture, "\n".join(bullets))))
        case Strips(name, title, strips=strips, caption=caption):
            labels = "; ".join(strip.label for strip in strips)
            return _markdown_picture(name, title, f"From top to bottom: {labels}. {caption}")
        case Picture(name, _, title, caption) | Chart(name, _, title, caption):
            return _markdown_picture(name, title, caption)
        case Missing(what, command):
            return f"- {_markdown(what)}: {_markdown(command)}"
        case Atlas():
            return ""


def _markdown_picture(name: str, title: str, caption: str) -> str:
    words = f"{title}. {caption}"
    return f"![{escape_markdown(title)}](figures/{name})\n\n*{_markdown(words)}*"


def escape_markdown(text: object) -> str:
    """Untrusted text as one line of at most 400 characters without markup, link or formula."""
    return _markdown(shown(text))


def _markdown(text: str) -> str:
    safe = _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))
    return safe.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_markdown, cells))} |"


def to_latex(document: Document) -> str:
    """Every table of the document with booktabs, ready to be pasted into a paper."""
    blocks = [_LATEX_HEADER]
    for section in document.sections:
        for table in section.parts:
            if not isinstance(table, Table):
                continue
            # no \label: a name in it could not be escaped
            caption = f"{table.title}. {section.title}. {table.caption}".strip()
            lines = [
                r"\begin{table}",
                rf"\caption{{{escape_latex(caption)}}}",
                r"\centering\small",
                rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
                r"\toprule",
                _latex_row(table.header),
                r"\midrule",
                *map(_latex_row, table.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
            ]
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"


def escape_latex(text: str) -> str:
    """Text as one line without a live command."""
    return " ".join(text.split()).translate(str.maketrans(_LATEX))


def to_html(document: Document) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("eval.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "kind": lambda part: type(part).__name__.lower(),
        "data_url": _data_url,
        "fields": msgspec.to_builtins,
        "place": lambda forest: place(forest, 4.0, 96.0),  # tick labels stay inside
        "legend": _legend,
        "value": lambda row, signed: with_interval(
            row.value, row.interval, "+.3f" if signed else ".3f"
        ),
        "sprite": lambda strip: _url("image/png", png(row(strip.images))),
    }
    pairs = zip(LIGHT, DARK, strict=True)
    colours = palette([f"light-dark({light},{dark})" for light, dark in pairs])
    style = (_template("report.css") + RULES).replace("/*COLOURS*/", colours)
    return environment.get_template("report.html").render(
        document=document,
        style=Markup(style),
        colour=KIND_COLOURS,
        script=Markup(_template("report.js")),
        markup=Markup,
    )


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _legend(forest: Forest) -> dict[Kind, str]:
    """The kinds of rows in a forest that a reader has to tell apart."""
    kinds = {row.kind for row in forest.rows if not row.numbers}
    return {kind: name for kind, name in KINDS.items() if kind in kinds} if len(kinds) > 1 else {}


def _data_url(picture: Picture) -> str:
    """Lossless WebP of half the size; the file as it is where Pillow cannot read it."""
    content = picture.file.read_bytes()
    packed = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.save(packed, "WEBP", lossless=True, exact=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return _url("image/png", content)
    return _url("image/webp", packed.getvalue())


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
