"""The tables of a transfer, for transfer.md and for the report. Names in it are not trusted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import read_json
from eval.measure.readouts import PRIMARY
from eval.measure.suite import SPLITS
from eval.report.document import Bullets, Part, Section, Table, Text, mean_sd, shown
from eval.report.runs import UNEQUAL
from eval.transfer import contrasts as transfer_contrasts

RESULTS = "transfer.json"
Results = dict[str, Any]
Row = dict[str, Any]

LEAD = (
    "Macro AUROC on test of a logistic probe. A number is one fit on one split, or mean ± standard "
    "deviation over runs that differ in their seed; `scores` has what intervals need."
)


def load(folder: Path) -> list[Section]:
    """What the transfer in a folder has to say.

    Raises:
        DataError: there is none, or its file is not one of this version.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise DataError(f"{path} does not exist: make it with: python -m eval.transfer")
    found = read_json(path)
    try:
        carried = sections(found)
        compared = transfer_contrasts.differences(folder, found, _arms(found))
        title = "Arms compared where they were carried"
        return [*carried, Section(3, title, compared)] if compared else carried
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} was not written by this version ({error!r}): run eval.transfer again"
        ) from None


def sections(results: Results) -> list[Section]:
    """From what is in transfer.json."""
    arms = _arms(results)
    parts: list[Part] = [Text(LEAD), _data(results)]
    if notices := results["notices"]:
        parts.append(Bullets(tuple(map(shown, notices))))
    found = [Section(2, "Transfer between sites", parts)]
    for stain in results["protocol"]["stain"]:
        tables = [
            make(rows, lambda row: _name(results, arms, row))
            for experiment, make in _TABLES.items()
            if (rows := [row for row in results[experiment] if row["stain"] == stain])
        ]
        found.append(Section(3, f"Stain normalisation: {shown(stain)}", tables))
    return found


def _data(results: Results) -> Table:
    """Few groups make uncertain numbers."""
    rows = []
    for name, found in results["data"].items():
        counts = [f"{s['patches']:,} ({s['groups']:,})" for s in found["splits"].values()]
        rows.append([shown(name), *counts, f"{len(found['sites'])}"])
    header = ["data set", *SPLITS, "sites named"]
    return Table("Sites", header, rows, "Patches and, in brackets, groups of each split.")


def _arms(results: Results) -> dict[str, str]:
    """Of every run, the preset where all its runs differ in the seed only; else its own name."""
    by_preset: dict[str, list[tuple[str, Any]]] = {}
    for name, about in results["runs"].items():
        alike = {k: v for k, v in about.items() if k not in (*UNEQUAL, "folder", "snapshot")}
        by_preset.setdefault(str(about["preset"]), []).append((name, (alike, about["seed"])))
    found = {}
    for preset, members in by_preset.items():
        seeds = {seed for _, (_, seed) in members}
        same = all(alike == members[0][1][0] for _, (alike, _) in members)
        for name, _ in members:
            found[name] = preset if same and len(seeds) == len(members) else name
    return found


def _name(results: Results, arms: dict[str, str], row: Row) -> str:
    """With its arm or runs where it is not one for all of them."""
    if row["features"] == PRIMARY:
        return shown(f"{PRIMARY} of {arms[row['runs'][0]]}")
    some = len(row["runs"]) < len(results["runs"])
    of = f" of {', '.join(dict.fromkeys(arms[name] for name in row['runs']))}" if some else ""
    return shown(row["features"] + of)


Name = Callable[[Row], str]


def _matrix(rows: list[Row], name: Name) -> Table:
    """A row what was fitted on what, a column a test set."""
    tests = list(dict.fromkeys(row["test"] for row in rows))
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        cells = found.setdefault((name(row), shown(row["train"])), {})
        cells.setdefault(row["test"], []).append(row["auroc"])
    header = ["features", "fitted on", *(f"tested on {shown(test)}" for test in tests)]
    body = [[*key, *(mean_sd(cells.get(t, [])) for t in tests)] for key, cells in found.items()]
    return Table("From site to site", header, body)


def _left_out(rows: list[Row], name: Name) -> Table:
    header = ["features", "data set", "site", "fitted on the others", "fitted on all"]
    columns = ("auroc", "auroc_all_sites")
    body = _grouped(rows, lambda row: (name(row), row["data"], row["site"]), columns)
    return Table("One site left out in turn", header, body)


def _site_probe(rows: list[Row], name: Name) -> Table:
    columns = ("auroc", "chance_auroc", "balanced_accuracy", "chance_balanced_accuracy")
    header = ["features", "sites of", *(column.replace("_", " ") for column in columns)]
    body = _grouped(rows, lambda row: (name(row), row["data"]), columns)
    caption = "How well the site can be read off the features: lower is better."
    return Table("Site probe", header, body, caption)


_TABLES: dict[str, Callable[[list[Row], Name], Table]] = {
    "matrix": _matrix,
    "left_out": _left_out,
    "site_probe": _site_probe,
}


def _grouped(
    rows: list[Row], key: Callable[[Row], tuple[str, ...]], columns: tuple[str, ...]
) -> list[list[str]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return [
        [*map(shown, names), *(mean_sd([row[c] for row in members]) for c in columns)]
        for names, members in found.items()
    ]
