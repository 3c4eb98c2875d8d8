"""Writes a report in every format."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.files import read_json, remove_unfinished, write_atomically
from common.locks import held
from eval.report import efficiency, pictures, svg, writers
from eval.report.compose import compose
from eval.report.document import Chart, Document, Forest, Picture, Strips
from eval.report.runs import EvaluatedRun, load_runs, near
from eval.results import RESULTS
from eval.transfer import tables as transfer_tables

REPORT, PAGE, TABLES, NUMBERS = "report.md", "report.html", "tables.tex", "report.json"
VERSION = 1  # of report.json


def write_report(
    run_folders: Iterable[Path],
    out: Path,
    transfers: Sequence[Path] = (),
    measured: Path | None = None,
) -> Path:
    """Write report.html, report.md, tables.tex, report.json and figures/ to the folder `out`.

    Args:
        transfers: folders that eval.transfer wrote, whose tables are included.
        measured: JSON that bench/throughput.py model wrote.

    Returns: the path of report.md.

    Raises:
        DataError: there is no run, one was not evaluated, or a file cannot be read.
    """
    runs = load_runs(run_folders)
    sections = [section for folder in transfers for section in transfer_tables.load(folder)]
    sizes = None if measured is None else efficiency.load(measured)
    options = [word for folder in transfers for word in ("--transfer", near(folder))]
    if measured is not None:
        options += ["--efficiency", near(measured)]
    document = compose(runs, sections, sizes, options)
    with held(out, "writes a report there"):
        for folder in (out, out / "figures"):
            remove_unfinished(folder)
        for part in document.parts:
            match part:
                case Chart(name, drawing):
                    content = svg.standalone(drawing).encode()
                case Forest(name):
                    content = svg.standalone(svg.forest(part)).encode()
                case Strips(name):
                    content = pictures.sheet(part)
                case Picture(name, file):
                    content = file.read_bytes()
                case _:
                    continue
            write_atomically(out / "figures" / name, content)
        texts = {
            PAGE: writers.to_html(document),
            TABLES: writers.to_latex(document),
            NUMBERS: _numbers(runs, document),
            REPORT: writers.to_markdown(document),
        }
        for name, text in texts.items():
            write_atomically(out / name, text.encode())
    return out / REPORT


def _numbers(runs: Iterable[EvaluatedRun], document: Document) -> str:
    """The verdicts, and results.json of every run without its longest list, as JSON."""
    numbers: dict[str, Any] = {
        "version": VERSION,
        "verdicts": [asdict(verdict) for verdict in document.verdicts],
        "runs": {},
    }
    for run in runs:
        results = read_json(run.folder / RESULTS)
        latent = results.get("latent") and results["latent"] | {"kl_per_dimension": None}
        data = {"hash": run.results.data.hash, "root": near(run.root)}
        numbers["runs"][run.label] = results | {"latent": latent, "data": data}
    return json.dumps(numbers, ensure_ascii=False, separators=(",", ":")) + "\n"
