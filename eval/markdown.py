"""Markdown from untrusted names and numbers: escaped text, tables, code, numbers with a unit."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "–"
MAX_TEXT = 400

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#|~$!^])")


def escape(text: object) -> str:
    """Text that shows as it is: no markup, no HTML, no link, no formula, one line."""
    line = "".join(c if c.isprintable() else " " for c in str(text)).strip()
    if len(line) > MAX_TEXT:
        line = line[: MAX_TEXT - 1] + "…"
    safe = _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))
    return safe.replace("://", ":&#47;&#47;").replace("www.", "www&#46;").replace("@", "&#64;")


def number(value: Any, digits: int = 3) -> str:
    """A finite number with so many digits after the point; a dash for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING
    return f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already: the first column to the left, others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def code_block(text: str) -> str:
    """A fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
