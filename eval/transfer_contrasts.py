"""Differences between arms whose probes were carried to other sites, with intervals.

Read from the scores that `eval.transfer` writes, a file a run and test set. Nothing here was
planned beforehand: numbers and intervals without a word of judgement.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.arms import Arm
from eval.contrasts import compare
from eval.document import Table, shown
from eval.probe import PRIMARY_PROBE
from eval.readouts import PRIMARY
from eval.scores import Condition, ScoreBook, read_scores
from eval.verdicts import PLAN, cells, pairs, shortcomings

HEADER = ["contrast", "probe", "tested on", "difference", "95 % interval", "detectable", "seeds",
          "beware"]  # fmt: skip

Runs = Mapping[str, Mapping[int, str]]  # of an arm, by seed


def differences(folder: Path, results: Mapping[str, Any], arms: Mapping[str, str]) -> list[Table]:
    """One table, or none where there are no two arms, or no scores.

    Args:
        folder: of the transfer; its names are not trusted.
        arms: by run, the arm it is of.
    """
    runs = _by_seed(results, arms)
    known = {name: Arm(name, name, None) for name in runs}
    rows: list[list[str]] = []
    resampled: set[str] = set()
    for test in map(str, results["data"]):
        books = _books(folder / "scores", test, list(arms))
        for first, second in pairs(known):
            for condition in _conditions(books):
                both = {arm: _scores(books, runs[arm], condition) for arm in (first, second)}
                seeds = sorted(set.intersection(*(set(found) for found in both.values())))
                if not seeds:
                    continue
                book = books[runs[first][seeds[0]]]
                stacked = {arm: np.stack([found[s] for s in seeds]) for arm, found in both.items()}
                labels = book.rows["label"].to_numpy().astype(np.int64)
                groups = np.array(book.rows["group"].to_pylist(), dtype=object)
                contrast = compare(stacked, labels, groups, plan=PLAN)
                resampled.add(contrast.difference.resampled)
                beware = "; ".join(shortcomings(contrast.difference))
                names = [f"{first} - {second}", shown(condition), shown(test)]
                rows.append([*names, *cells(contrast), beware])
    caption = (
        "Macro AUROC of carried probes, paired by seed; not planned beforehand and not corrected "
        f"for their number. Resampled: {'; or '.join(sorted(resampled))}."
    )
    return [Table("Differences between arms, carried", HEADER, rows, caption)] if rows else []


def _by_seed(results: Mapping[str, Any], arms: Mapping[str, str]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for run, arm in arms.items():
        found.setdefault(arm, {})[int(results["runs"][run]["seed"])] = run
    return found


def _books(scores: Path, test: str, runs: list[str]) -> dict[str, ScoreBook]:
    """Of the runs that have scores there."""
    paths = {run: scores / run / f"{test}.parquet" for run in runs}
    inside = {run: p for run, p in paths.items() if p.resolve().is_relative_to(scores.resolve())}
    return {run: read_scores(path)[0] for run, path in inside.items() if path.is_file()}


def _conditions(books: Mapping[str, ScoreBook]) -> list[str]:
    names = (c.condition for book in books.values() for c in book.scores if c.features == PRIMARY)
    return list(dict.fromkeys(names))


def _scores(
    books: Mapping[str, ScoreBook], runs: Mapping[int, str], condition: str
) -> dict[int, Any]:
    wanted = Condition(PRIMARY, PRIMARY_PROBE, condition)
    return {
        seed: books[run].scores[wanted]
        for seed, run in runs.items()
        if run in books and wanted in books[run].scores
    }
