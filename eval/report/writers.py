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

from eval.figures import DARK, LIGHT
from eval.report.document import (
    Atlas,
    Bullets,
    Chart,
    Code,
    Document,
    Part,
    Picture,
    Table,
    Text,
    Verdict,
    shown,
)
from eval.report.svg import RULES, palette

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
WORD_STYLES = {"holds": "good", "superior": "good", "non-inferior": "good", "inferior": "bad"}


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
        case Verdict(question, before, word, meaning, numbers):
            start, end = _markdown(f"{question}. {before}"), _markdown(f"{meaning} {numbers}")
            return f"- {start} **{_markdown(word).capitalize()}.** {end}"
        case Picture(name, _, caption) | Chart(name, _, caption):
            return f"![{escape_markdown(caption)}](figures/{name})\n\n*{_markdown(caption)}*"
        case Atlas():
            return ""


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
        "look": lambda word: WORD_STYLES.get(word, "open"),
        "fields": msgspec.to_builtins,
    }
    style = (_template("report.css") + RULES).replace("/*LIGHT*/", palette(LIGHT))
    return environment.get_template("report.html").render(
        document=document,
        style=Markup(style.replace("/*DARK*/", palette(DARK))),
        script=Markup(_template("report.js")),
        markup=Markup,
    )


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _data_url(picture: Picture) -> str:
    """Lossless WebP of half the size; the file as it is where Pillow cannot read it."""
    content = picture.file.read_bytes()
    packed = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.save(packed, "WEBP", lossless=True, exact=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return f"data:image/webp;base64,{base64.b64encode(packed.getvalue()).decode()}"
