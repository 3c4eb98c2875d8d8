"""The tables of a transfer, for transfer.md and for the report. Names in it are not trusted.

Differences between arms come from the scores, a file per run and test set. None was planned
beforehand: they are numbers and intervals without a word of judgement.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from common.errors import DataError
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.measure.scores import Condition, ScoreBook, Scores, read_scores
from eval.report.arms import TestSet
from eval.report.document import Bullets, Part, Section, Table, Text, mean_sd, shown
from eval.report.runs import UNEQUAL
from eval.report.verdicts import contrast_cells, pairs, shortcomings
from eval.stats.contrasts import Contrast
from eval.transfer.results import (
    TRANSFER,
    MatrixRow,
    Transfer,
    Transferred,
    TransferRun,
    load_transfer,
)
from shards.sources.splits import SPLITS

LEAD = (
    "Macro AUROC on test of a logistic probe. A number is one fit on one split, or mean ± standard "
    "deviation over runs that differ in their seed; `scores` has what intervals need."
)
HEADER = ["contrast", "probe", "tested on", "difference", "95 % interval", "detectable"]
HEADER += ["seeds", "beware"]
LEFT_OUT = ["features", "data set", "site", "fitted on the others", "fitted on all"]

SITE_SCORES = ("auroc", "chance_auroc", "balanced_accuracy", "chance_balanced_accuracy")
SITE_PROBE = ["features", "sites of", *(score.replace("_", " ") for score in SITE_SCORES)]
SITE_CAPTION = "How well the site can be read off the features: lower is better."

Name = Callable[[Transferred], str]  # features, and whose they are
Cell = float | None


def load(folder: Path) -> list[Section]:
    """Read the transfer in a folder and make its sections.

    Raises:
        DataError: there is none, or its files are not of this version.
    """
    transfer = load_transfer(folder)
    try:
        transferred = sections(transfer)
        tables = differences(folder, transfer, arms_of(transfer.runs))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{folder / TRANSFER} was not written by this version ({error!r}): "
            "run eval.transfer again"
        ) from None
    compared = [Section(3, "Arms compared after transfer", tables)] if tables else []
    return [*transferred, *compared]


def sections(transfer: Transfer) -> list[Section]:
    """Make the sections of a transfer: its data sets, then its experiments by stain."""
    arms = arms_of(transfer.runs)

    def name(row: Transferred) -> str:
        """Name features, with their arm or runs where they are not the same for all."""
        if row.features == PRIMARY:
            return shown(f"{PRIMARY} of {arms[row.runs[0]]}")
        if len(row.runs) == len(transfer.runs):
            return shown(row.features)
        owners = dict.fromkeys(arms[run] for run in row.runs)
        return shown(f"{row.features} of {', '.join(owners)}")

    sites = []
    for data_name, data in transfer.data.items():
        counts = [f"{split.patches:,} ({split.groups:,})" for split in data.splits.values()]
        sites.append([shown(data_name), *counts, f"{len(data.sites)}"])
    header = ["data set", *SPLITS, "sites named"]
    caption = "Patches and, in brackets, groups of each split."  # few make uncertain numbers
    lead: list[Part] = [Text(LEAD), Table("Sites", header, sites, caption)]
    if transfer.notices:
        lead.append(Bullets(tuple(map(shown, transfer.notices))))
    by_stain = []
    for stain in transfer.protocol.stain:
        matrix = [row for row in transfer.matrix if row.stain == stain]
        left_out = [row for row in transfer.left_out if row.stain == stain]
        site_probe = [row for row in transfer.site_probe if row.stain == stain]
        tables: list[Part] = []
        if matrix:
            tables.append(_matrix(matrix, name))
        if left_out:
            rows = [((name(r), r.data, r.site), (r.auroc, r.auroc_all_sites)) for r in left_out]
            tables.append(Table("One site left out in turn", LEFT_OUT, _grouped(rows)))
        if site_probe:
            numbers = attrgetter(*SITE_SCORES)
            probed = [((name(row), row.data), numbers(row)) for row in site_probe]
            tables.append(Table("Site probe", SITE_PROBE, _grouped(probed), SITE_CAPTION))
        by_stain.append(Section(3, f"Stain normalisation: {shown(stain)}", tables))
    return [Section(2, "Transfer between sites", lead), *by_stain]


def arms_of(runs: Mapping[str, TransferRun]) -> dict[str, str]:
    """Name the arm of every run: its preset where its runs differ in the seed only, else itself."""
    by_preset: dict[str, list[str]] = {}
    for name, run in runs.items():
        by_preset.setdefault(str(run.preset), []).append(name)
    arms: dict[str, str] = {}
    for preset, names in by_preset.items():
        seeds = {runs[name].seed for name in names}
        ignored = dict.fromkeys((*UNEQUAL, "folder", "snapshot"))
        settings = {replace(runs[name], **ignored) for name in names}
        one_arm = len(settings) == 1 and len(seeds) == len(names)
        arms |= {name: preset if one_arm else name for name in names}
    return arms


def _matrix(rows: Sequence[MatrixRow], name: Name) -> Table:
    """Tabulate what a probe was fitted on (rows) against the test sets (columns)."""
    tests = list(dict.fromkeys(row.test for row in rows))
    by_fit: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for row in rows:
        by_test = by_fit.setdefault((name(row), shown(row.train)), {})
        by_test.setdefault(row.test, []).append(row.auroc)
    header = ["features", "fitted on", *(f"tested on {shown(test)}" for test in tests)]
    body = [[*key, *(mean_sd(cells.get(t, [])) for t in tests)] for key, cells in by_fit.items()]
    return Table("From site to site", header, body)


def _grouped(rows: Sequence[tuple[tuple[str, ...], tuple[Cell, ...]]]) -> list[list[str]]:
    """Average the numbers of rows that have one key."""
    by_key: dict[tuple[str, ...], list[tuple[Cell, ...]]] = {}
    for key, numbers in rows:
        by_key.setdefault(key, []).append(numbers)
    return [
        [*map(shown, key), *(mean_sd(column) for column in zip(*members, strict=True))]
        for key, members in by_key.items()
    ]


def differences(folder: Path, transfer: Transfer, arms: Mapping[str, str]) -> list[Table]:
    """Compare arms on every test set; one table, or none without two arms or without scores.

    Args:
        folder: the folder of the transfer; its names are not trusted.
        arms: the arm of each run.

    Raises:
        DataError: scores of another model, or of other patches.
    """
    by_seed: dict[str, dict[int, str]] = {}
    for run, arm in arms.items():
        by_seed.setdefault(arm, {})[transfer.runs[run].seed or 0] = run
    rows: list[list[str]] = []
    resampled: set[str] = set()
    for test in transfer.data:
        books = _books(folder / "scores", test, transfer.runs)
        conditions = dict.fromkeys(
            condition
            for book in books.values()
            for condition in book.scores
            if (condition.features, condition.probe) == (PRIMARY, PRIMARY_PROBE)
        )
        for first, second in pairs({name: name for name in by_seed}):
            for condition in conditions:
                both = [_scores(books, by_seed[arm], condition) for arm in (first, second)]
                contrast, beware = _contrast(books, first, second, both)
                if contrast is None:
                    continue
                resampled.add(contrast.difference.resampled)
                names = [f"{first} - {second}", condition.setting, test]
                rows.append([*map(shown, names), *contrast_cells(contrast), shown(beware)])
    caption = (
        "Macro AUROC of transferred probes, paired by seed; not planned beforehand and not "
        f"corrected for their number. Resampled: {'; or '.join(sorted(resampled))}."
    )
    return [Table("Differences between arms after transfer", HEADER, rows, caption)] if rows else []


def _books(scores: Path, test: str, runs: Mapping[str, TransferRun]) -> dict[str, ScoreBook]:
    """Read the scores of runs on a test set, where there are any.

    Raises:
        DataError: they are of another model than was transferred, or of other patches.
    """
    books: dict[str, ScoreBook] = {}
    keys: list[str] | None = None
    for name, run in runs.items():
        path = scores / name / f"{test}.parquet"
        if not path.resolve().is_relative_to(scores.resolve()) or not path.is_file():
            continue
        book, facts = read_scores(path)
        keys = keys or book.rows["key"].to_pylist()
        if facts.get("snapshot_xxh3") != run.snapshot:
            raise DataError(f"{path} is of another snapshot: run eval.transfer again")
        if book.rows["key"].to_pylist() != keys:
            raise DataError(f"{path} is of other test patches: run eval.transfer again")
        books[name] = book
    return books


def _scores(
    books: Mapping[str, ScoreBook], runs: Mapping[int, str], condition: Condition
) -> dict[int, Scores]:
    """Scores of an arm in a condition, by seed."""
    return {
        seed: books[run].scores[condition]
        for seed, run in runs.items()
        if run in books and condition in books[run].scores
    }


def _contrast(
    books: Mapping[str, ScoreBook], first: str, second: str, both: list[dict[int, Scores]]
) -> tuple[Contrast | None, str]:
    """Compare two arms over the seeds that both have, on patches that all of them scored."""
    seeds = sorted(both[0].keys() & both[1].keys())
    if not seeds:
        return None, ""
    stacked = [np.stack([by_seed[seed] for seed in seeds]) for by_seed in both]
    scored = np.isfinite(stacked).all((0, 1, 3))
    test = TestSet.of(next(iter(books.values())))
    test = replace(test, labels=test.labels[scored], groups=test.groups[scored])
    arms = zip((first, second), stacked, strict=True)
    contrast = test.compare({arm: scores[:, scored] for arm, scores in arms})
    beware = shortcomings(contrast.difference)
    if alone := sorted(both[0].keys() ^ both[1].keys()):
        beware.append(f"seeds {alone} have no partner")
    if not scored.all():
        beware.append(f"{int((~scored).sum())} patches without scores")
    return contrast, "; ".join(beware)
