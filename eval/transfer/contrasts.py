"""Differences between arms whose probes were carried to other sites, with intervals.

Read from the scores that `eval.transfer` writes, a file a run and test set. Nothing here was
planned beforehand: numbers and intervals without a word of judgement.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from eval.measure.probe import PRIMARY_PROBE
from eval.measure.readouts import PRIMARY
from eval.measure.scores import Condition, ScoreBook, Scores, read_scores
from eval.report.document import Table, shown
from eval.report.verdicts import contrast_cells, pairs, shortcomings
from eval.stats.contrasts import Contrast, compare

HEADER = ["contrast", "probe", "tested on", "difference", "95 % interval", "detectable", "seeds",
          "beware"]  # fmt: skip

Runs = Mapping[str, Mapping[int, str]]  # of an arm, by seed


def differences(folder: Path, results: Mapping[str, Any], arms: Mapping[str, str]) -> list[Table]:
    """One table, or none where there are no two arms, or no scores.

    Args:
        folder: of the transfer; its names are not trusted.
        arms: by run, the arm it is of.

    Raises:
        DataError: scores of another model, or of other patches.
    """
    runs = _by_seed(results, arms)
    rows: list[list[str]] = []
    resampled: set[str] = set()
    for test in map(str, results["data"]):
        books = _books(folder / "scores", test, results["runs"])
        for first, second in pairs({name: name for name in runs}):
            for condition in _conditions(books):
                both = [_scores(books, runs[arm], condition) for arm in (first, second)]
                contrast, beware = _contrast(books, first, second, both)
                if contrast is None:
                    continue
                resampled.add(contrast.difference.resampled)
                names = [f"{first} - {second}", condition, test]
                rows.append([*map(shown, names), *contrast_cells(contrast), shown(beware)])
    caption = (
        "Macro AUROC of carried probes, paired by seed; not planned beforehand and not corrected "
        f"for their number. Resampled: {'; or '.join(sorted(resampled))}."
    )
    return [Table("Differences between arms, carried", HEADER, rows, caption)] if rows else []


def _contrast(
    books: Mapping[str, ScoreBook], first: str, second: str, both: list[dict[int, Scores]]
) -> tuple[Contrast | None, str]:
    """The first arm minus the second over the seeds that both have, on patches that all scored."""
    seeds = sorted(both[0].keys() & both[1].keys())
    if not seeds:
        return None, ""
    stacked = [np.stack([found[seed] for seed in seeds]) for found in both]
    scored = np.isfinite(stacked).all((0, 1, 3))
    rows = next(iter(books.values())).rows
    labels = rows["label"].to_numpy().astype(np.int64)[scored]
    groups = np.array(rows["group"].to_pylist(), dtype=object)[scored]
    scores = {arm: found[:, scored] for arm, found in zip((first, second), stacked, strict=True)}
    contrast = compare(scores, labels, groups)
    beware = shortcomings(contrast.difference)
    if alone := sorted(both[0].keys() ^ both[1].keys()):
        beware.append(f"seeds {alone} have no partner")
    if not scored.all():
        beware.append(f"{int((~scored).sum())} patches without scores")
    return contrast, "; ".join(beware)


def _by_seed(results: Mapping[str, Any], arms: Mapping[str, str]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for run, arm in arms.items():
        found.setdefault(arm, {})[int(results["runs"][run]["seed"])] = run
    return found


def _books(scores: Path, test: str, runs: Mapping[str, Any]) -> dict[str, ScoreBook]:
    """Of the runs that have scores there, of the model that was carried and the same patches."""
    found: dict[str, ScoreBook] = {}
    keys: list[str] | None = None
    for run, about_run in runs.items():
        path = scores / run / f"{test}.parquet"
        if not path.resolve().is_relative_to(scores.resolve()) or not path.is_file():
            continue
        book, about = read_scores(path)
        keys = keys or book.rows["key"].to_pylist()
        if about.get("snapshot_xxh3") != about_run.get("snapshot"):
            raise DataError(f"{path} is of another snapshot: run eval.transfer again")
        if book.rows["key"].to_pylist() != keys:
            raise DataError(f"{path} is of other test patches: run eval.transfer again")
        found[run] = book
    return found


def _conditions(books: Mapping[str, ScoreBook]) -> list[str]:
    names = (c.condition for book in books.values() for c in book.scores if c.features == PRIMARY)
    return list(dict.fromkeys(names))


def _scores(
    books: Mapping[str, ScoreBook], runs: Mapping[int, str], condition: str
) -> dict[int, Scores]:
    wanted = Condition(PRIMARY, PRIMARY_PROBE, condition)
    return {
        seed: books[run].scores[wanted]
        for seed, run in runs.items()
        if run in books and wanted in books[run].scores
    }
