"""A document as Markdown: escaped text, tables, code, pictures by their file names."""

import html
import re
from collections.abc import Iterable, Sequence

from eval.report.document import (
    Atlas,
    Bullets,
    Chart,
    Code,
    Document,
    Part,
    Picture,
    Section,
    Table,
    Text,
    Verdict,
    shown,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$!^])")


def render(document: Document) -> str:
    """The whole document; pictures are expected in figures/ beside it."""
    parts = [f"# {escape(document.title)}", escape(document.lead)]
    for section in document.sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> list[str]:
    return ["#" * section.level + " " + escape(section.title), *map(_part, section.parts)]


def _part(part: Part) -> str:
    match part:
        case Text(text):
            return escape(text, None)
        case Bullets(items):
            return "\n".join(f"- {escape(item, None)}" for item in items)
        case Code(text):
            return code_block(text)
        case Table(title, header, rows, caption):
            cells = [[escape(cell, None) for cell in row] for row in rows]
            body = table([escape(cell, None) for cell in header], cells)
            return "\n\n".join(filter(None, [f"**{escape(title)}**", body, escape(caption, None)]))
        case Verdict(question, before, word, meaning, numbers):
            said = " ".join(escape(text, None) for text in (meaning, numbers) if text)
            first = f" {escape(before, None)}" if before else ""
            return f"- {escape(question)}.{first} **{escape(word).capitalize()}.** {said}"
        case Picture(name, _, caption) | Chart(name, _, _, caption):
            return f"![{escape(caption)}](figures/{name})\n\n*{escape(caption, None)}*"
        case Atlas():
            return ""


def escape(text: object, limit: int | None = 400) -> str:
    """Text that shows as it is: no markup, no HTML, no link, no formula, one line."""
    line = shown(text) if limit else " ".join(str(text).split())
    safe = _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))
    return safe.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already: the first column to the left, others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def code_block(text: str) -> str:
    """A fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
