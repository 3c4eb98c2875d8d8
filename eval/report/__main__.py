"""Runs side by side: `python -m eval.report RUN... --out DIR` writes DIR/report.html, one page that
opens from the disk, DIR/report.md with DIR/figures, DIR/tables.tex, and DIR/report.json.

Runs are compared only where they were evaluated on one data set. Names of runs and classes are
untrusted: `eval.report.document` holds them as plain text and every writer escapes all of it.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from common.command import run_command
from common.files import atomic_path
from eval.report import efficiency, latex, markdown, page
from eval.report import runs as entries
from eval.report import svg as charts
from eval.report.compose import compose
from eval.report.document import Chart, Document, Part, Picture, Verdict
from eval.report.runs import Entry
from eval.transfer import tables as transfer_report

REPORT, PAGE, TABLES, NUMBERS = "report.md", "report.html", "tables.tex", "report.json"
VERSION = 1


def write_report(
    run_folders: Iterable[Path],
    out: Path,
    transfers: Iterable[Path] = (),
    measured: Path | None = None,
) -> Path:
    """Write OUT/report.html, OUT/report.md, OUT/tables.tex, OUT/report.json and OUT/figures; the
    path of the Markdown.

    Args:
        transfers: folders that eval.transfer wrote, whose tables are taken in.
        measured: what bench/throughput.py model wrote, with --json.

    Raises:
        DataError: no run, or one that was not evaluated or whose results cannot be read.
    """
    out = Path(out)
    found = entries.load(Path(folder) for folder in run_folders)
    carried = [section for folder in transfers for section in transfer_report.load(Path(folder))]
    sizes = None if measured is None else efficiency.load(Path(measured))
    options = [word for path in transfers for word in ("--transfer", entries.near(Path(path)))]
    options += [] if measured is None else ["--efficiency", entries.near(Path(measured))]
    document = compose(found, carried, sizes, options)
    for section in document.sections:
        for part in section.parts:
            _write_figure(part, out / "figures")
    _write(out / PAGE, page.render(document))
    _write(out / TABLES, latex.render(document))
    _write(out / NUMBERS, _numbers(found, document))
    return _write(out / REPORT, markdown.render(document))


def _numbers(found: list[Entry], document: Document) -> str:
    """The verdicts, and by run what eval.main wrote but for the longest list."""
    kept: dict[str, Any] = {"version": VERSION, "verdicts": [], "runs": {}}
    for part in (part for section in document.sections for part in section.parts):
        if isinstance(part, Verdict):
            kept["verdicts"].append(asdict(part))
    for entry in found:
        latent = entry.at("latent")
        short = latent | {"kl_per_dimension": None} if isinstance(latent, dict) else latent
        data = {"hash": entry.at("data", "hash"), "root": entries.near(entry.root)}
        kept["runs"][entry.label] = entry.results | {"latent": short, "data": data}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")) + "\n"


def _write(path: Path, text: str) -> Path:
    with atomic_path(path) as temp:
        temp.write_text(text, encoding="utf-8")
    return path


def _write_figure(part: Part, folder: Path) -> None:
    if isinstance(part, Chart):
        _write(folder / part.name, charts.standalone(part.svg))
    elif isinstance(part, Picture):
        with atomic_path(folder / part.name) as temp:
            shutil.copyfile(part.file, temp)


_Runs = Annotated[list[Path], tyro.conf.arg(metavar="RUN...", help="folders of evaluated runs")]
_Transfers = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="DIR...", help="folders of eval.transfer, whose tables are taken in"),
]
_Efficiency = Annotated[
    Path | None,
    tyro.conf.arg(metavar="FILE", help="of bench/throughput.py model --json: size and speed"),
]


def _command(
    run_folders: tyro.conf.Positional[_Runs],
    out: Path,
    transfer: _Transfers = (),
    efficiency: _Efficiency = None,
) -> Callable[[], None]:
    """Compare evaluated runs: an HTML page, Markdown, tables for LaTeX, the numbers as JSON."""

    def action() -> None:
        path = write_report(run_folders, out, transfer, efficiency)
        print(*(path.with_name(name) for name in (PAGE, REPORT, TABLES, NUMBERS)), sep="\n")

    return action


def main() -> int:
    return run_command("eval.report", _command)


if __name__ == "__main__":
    sys.exit(main())
