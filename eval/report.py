"""Runs side by side: `python -m eval.report RUN... --out DIR` writes DIR/report.html, one page that
opens from the disk, DIR/report.md with DIR/figures, and DIR/tables.tex.

Runs are compared only where they were evaluated on one data set. Names of runs and classes are
untrusted: `eval.document` holds them as plain text and every writer escapes all of it.
"""

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import tyro

from eval import charts, entries, latex, markdown, page
from eval import run as runs
from eval.contents import compose
from eval.document import Chart, Part, Picture
from shards.command import run_command

REPORT, PAGE, TABLES = "report.md", "report.html", "tables.tex"


def write_report(run_folders: Iterable[Path], out: Path) -> Path:
    """Write OUT/report.html, OUT/report.md, OUT/tables.tex and OUT/figures; the path of the
    Markdown.

    Raises:
        DataError: no run, or one that was not evaluated or whose results cannot be read.
    """
    out = Path(out)
    document = compose(entries.load(Path(folder) for folder in run_folders))
    for section in document.sections:
        for part in section.parts:
            _write_figure(part, out / "figures")
    _write(out / PAGE, page.render(document))
    _write(out / TABLES, latex.render(document))
    return _write(out / REPORT, markdown.render(document))


def _write(path: Path, text: str) -> Path:
    with runs.whole_file(path) as temp:
        temp.write_text(text, encoding="utf-8")
    return path


def _write_figure(part: Part, folder: Path) -> None:
    if isinstance(part, Chart):
        _write(folder / part.name, charts.standalone(part.svg))
    elif isinstance(part, Picture):
        with runs.whole_file(folder / part.name) as temp:
            shutil.copyfile(part.file, temp)


_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of evaluated runs")]


def _command(run_folders: tyro.conf.Positional[_Runs], out: Path) -> Callable[[], None]:
    """Compare evaluated runs: one HTML page, Markdown, and the tables for LaTeX."""

    def action() -> None:
        path = write_report(run_folders, out)
        print(f"{path.with_name(PAGE)}\n{path}\n{path.with_name(TABLES)}")

    return action


def main() -> int:
    return run_command("eval.report", _command)


if __name__ == "__main__":
    sys.exit(main())
