"""The tables of a transfer as Markdown. Names are untrusted and escaped."""

from typing import Any

from eval.markdown import escape, table
from eval.readouts import PRIMARY
from eval.suite import SPLITS

Results = dict[str, Any]
Row = dict[str, Any]

LEAD = (
    "Macro AUROC on test of a logistic probe. Every number is one fit on one split; for intervals "
    "see the files in `scores`."
)


def tables(results: Results) -> str:
    """The text of transfer.md, from transfer.json."""
    parts = ["# Transfer between sites", LEAD, _data(results)]
    for stain in results["protocol"]["stain"]:
        parts.append(f"## Stain normalisation: {stain}")
        parts.append(_matrix(results, _of(results, "matrix", stain)))
        if rows := _of(results, "left_out", stain):
            parts += ["One site left out in turn:", _left_out(results, rows)]
        if rows := _of(results, "site_probe", stain):
            parts += ["How well the site can be read off the features (lower is better):"]
            parts += [_site_probe(results, rows)]
    parts.append("\n".join(f"- {escape(text)}" for text in results["notices"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _data(results: Results) -> str:
    """Patches and, in brackets, groups: few groups make uncertain numbers."""
    rows = []
    for name, found in results["data"].items():
        counts = [f"{s['patches']:,} ({s['groups']:,})" for s in found["splits"].values()]
        rows.append([escape(name), *counts, f"{len(found['sites'])}"])
    header = ["data set", *SPLITS, "sites named"]
    return table(header, rows) + "\n\nPatches and, in brackets, groups of each split."


def _of(results: Results, experiment: str, stain: str) -> list[Row]:
    return [row for row in results[experiment] if row["stain"] == stain]


def _matrix(results: Results, rows: list[Row]) -> str:
    """A row what was fitted on what, a column a test set."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells = found.setdefault((_name(results, row), row["train"]), {})
        cells[row["test"]] = _number(row["auroc"])
    tests = list(results["data"])
    return table(
        ["features", "fitted on", *(f"tested on {escape(name)}" for name in tests)],
        [[name, escape(train), *(cells.get(test, "") for test in tests)]
         for (name, train), cells in found.items()],
    )  # fmt: skip


def _left_out(results: Results, rows: list[Row]) -> str:
    return table(
        ["features", "data set", "site", "fitted on the others", "fitted on all"],
        [[_name(results, row), escape(row["data"]), escape(row["site"]), _number(row["auroc"]),
          _number(row["auroc_all_sites"])] for row in rows],
    )  # fmt: skip


def _site_probe(results: Results, rows: list[Row]) -> str:
    scores = ("auroc", "chance_auroc", "balanced_accuracy", "chance_balanced_accuracy")
    return table(
        ["features", "sites of", *(score.replace("_", " ") for score in scores)],
        [[_name(results, row), escape(row["data"]), *(_number(row[score]) for score in scores)]
         for row in rows],
    )  # fmt: skip


def _name(results: Results, row: Row) -> str:
    """With its runs where it is not one for all of them."""
    own = row["features"] == PRIMARY or len(row["runs"]) < len(results["runs"])
    return escape(f"{row['features']} of {', '.join(row['runs'])}" if own else row["features"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
