"""The tables of a document as LaTeX with booktabs, ready to be pasted into a paper."""

from collections.abc import Sequence

from eval.report.document import Document, Table

# "[" and "*" would be arguments of the "\\\\" that ends the row before
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "[": "{[}", "]": "{]}", "*": "{*}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "-": "{-}", "±": r"$\pm$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$",
    "–": "--", "…": r"\ldots{}", "μ": r"$\mu$", "ρ": r"$\rho$", "λ": r"$\lambda$",
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_TRANSLATION = str.maketrans(_SPECIAL)
_HEADER = "% Needs \\usepackage{booktabs,textcomp}; for names beyond Latin, XeLaTeX or LuaLaTeX."


def render(document: Document) -> str:
    """Every table of the document, in its order."""
    tables = [
        (section.title, part)
        for section in document.sections
        for part in section.parts
        if isinstance(part, Table)
    ]
    return "\n\n".join([_HEADER, *(_table(title, part) for title, part in tables)]) + "\n"


def _table(section: str, table: Table) -> str:
    # no \label: a name in it could not be escaped
    caption = f"{table.title}. {section}. {table.caption}".strip()
    return "\n".join([
        r"\begin{table}",
        rf"\caption{{{escape(caption)}}}",
        r"\centering\small",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _row(table.header),
        r"\midrule",
        *map(_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ])  # fmt: skip


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"


def escape(text: str) -> str:
    """Text without a live command; one line."""
    return " ".join(text.split()).translate(_TRANSLATION)
