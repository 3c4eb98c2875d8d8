"""Scores of every test patch in every condition, from which all statistics are computed.

RUN/scores.parquet has a row per test patch (key, label, group and the columns that define it) and a
column per condition: the class probabilities, a fixed-size list of float32.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from common.errors import DataError
from eval.features import vectors_of, with_embeddings
from eval.measure.probe import PRIMARY_PROBE
from eval.parquet import read_table, write_tables

SCORES = "scores.parquet"
CLEAN = "clean"

Scores = NDArray[np.float32]  # (n, K) class probabilities


@dataclass(frozen=True)
class Condition:
    """How a probe was fitted and tested: with all labels on clean patches, or otherwise.

    It is a column of scores.parquet, named FEATURES/PROBE/SETTING/DRAW as in
    `mean/logistic/clean/0`, `mean/logistic/k=2/13`, `mean/logistic/noise-3/0` or
    `mean/logistic/train=oral,stain=site/0`.
    """

    features: str
    probe: str = PRIMARY_PROBE
    budget: str | None = None  # labels of few groups: "k=2" or "10%"
    draw: int = 0  # of the labelled groups of a budget
    corruption: str | None = None  # of test patches
    severity: int = 0  # of the corruption, from 1
    train: str | None = None  # where the probe of a transfer was fitted
    stain: str | None = None  # how a transfer normalised staining

    @property
    def setting(self) -> str:
        """The condition without features, probe and draw, as text."""
        if self.train is not None:
            return f"train={self.train},stain={self.stain}"
        if self.corruption is not None:
            return f"{self.corruption}-{self.severity}"
        return self.budget or CLEAN

    @property
    def column(self) -> str:
        return f"{self.features}/{self.probe}/{self.setting}/{self.draw}"

    @classmethod
    def parse(cls, column: str) -> "Condition":
        """Read the name of a column.

        Raises:
            ValueError: it is not the name of a condition.
        """
        features, probe, setting, draw = column.split("/")
        base = cls(features, probe, draw=int(draw))
        if setting == CLEAN:
            return base
        if match := re.fullmatch(r"train=(.+),stain=(\w+)", setting):
            return replace(base, train=match[1], stain=match[2])
        if match := re.fullmatch(r"(\w+)-(\d+)", setting):
            return replace(base, corruption=match[1], severity=int(match[2]))
        if re.fullmatch(r"k=\d+|\d+%", setting):
            return replace(base, budget=setting)
        raise ValueError(f"the column {column!r} is not the name of a condition")


@dataclass
class ScoreBook:
    """The scores of one run on one test split of `rows` (columns key, label, group, ...)."""

    rows: pa.Table
    classes: int
    scores: dict[Condition, Scores] = field(default_factory=dict)

    def add(
        self, condition: Condition, scores: NDArray[np.floating], classes: NDArray[np.int64]
    ) -> None:
        """Add probabilities (n, k) of the k classes that a probe was fitted on; others get 0."""
        probabilities = np.zeros((self.rows.num_rows, self.classes), np.float32)
        probabilities[:, classes] = scores
        self.scores[condition] = probabilities

    def write(self, path: Path, facts: Mapping[str, str]) -> None:
        """Write the book as Parquet, with `facts` as metadata of the file."""
        table = self.rows
        for condition, scores in self.scores.items():
            table = with_embeddings(table, scores, condition.column)
        write_tables(path, [table], facts)


def read_scores(path: Path) -> tuple[ScoreBook, dict[str, str]]:
    """Read the scores of a run, and the `facts` that `write` was given.

    Raises:
        DataError: no such file, not one of this format, or altered.
    """
    table, facts = read_table(path)
    try:
        names = [name for name in table.column_names if name.count("/") == 3]
        scores = {
            Condition.parse(name): vectors_of(table[name]).astype(np.float32) for name in names
        }
        labels = table["label"].to_numpy()
    except (pa.ArrowException, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as scores: {error}; evaluate the run again"
        ) from None
    sizes = {array.shape for array in scores.values()}
    if len(sizes) != 1 or sizes.pop()[1] <= labels.max(initial=0):
        raise DataError(f"{path} does not hold scores of every class; evaluate the run again")
    classes = next(iter(scores.values())).shape[1]
    return ScoreBook(table.drop_columns(names), classes, scores), facts
