"""What a probe said of every test patch, in every condition: the raw material of all statistics.

RUN/scores.parquet has a row a test patch (key, label, group and the names behind it) and a column
a condition: the class probabilities, a fixed-size list of float32. Its name has four parts, as in
`mean/logistic/clean/0` or `mean/logistic/k=2/13`: features, probe, condition, draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path
from eval.measure.readouts import with_embeddings

SCORES = "scores.parquet"
CLEAN = "clean"

Scores = NDArray[np.float32]  # (n, K) class probabilities


class Condition(NamedTuple):
    features: str
    probe: str
    condition: str = CLEAN
    draw: int = 0

    @property
    def column(self) -> str:
        return "/".join(map(str, self))


@dataclass
class ScoreBook:
    """The scores of one run on one test split of `rows` (columns key, label, group, ...)."""

    rows: pa.Table
    classes: int
    scores: dict[Condition, Scores] = field(default_factory=dict)

    def add(
        self, condition: Condition, found: NDArray[np.floating], classes: NDArray[np.int64]
    ) -> None:
        """Keep (n, k) probabilities of the k classes that a probe knows; 0 for the others."""
        whole = np.zeros((self.rows.num_rows, self.classes), np.float32)
        whole[:, classes] = found
        self.scores[condition] = whole

    def write(self, path: Path, about: Mapping[str, str]) -> None:
        table = self.rows
        for condition, found in self.scores.items():
            table = with_embeddings(table, found, condition.column)
        with atomic_path(path) as temp:
            pq.write_table(table.replace_schema_metadata(dict(about)), temp, compression="zstd")


def read_scores(path: Path) -> tuple[ScoreBook, dict[str, str]]:
    """The scores of a run, and what they are of (`about` of `write`).

    Raises:
        DataError: no such file, or not one of this format.
    """
    try:
        table = pq.read_table(path)
        names = [name for name in table.column_names if name.count("/") == 3]
        found = {_condition(name): _vectors(table[name]) for name in names}
        labels = table["label"].to_numpy()
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as scores: {error}; evaluate the run again"
        ) from None
    sizes = {scores.shape for scores in found.values()}
    if len(sizes) != 1 or sizes.pop()[1] <= labels.max(initial=0):
        raise DataError(f"{path} does not hold scores of every class; evaluate the run again")
    classes = next(iter(found.values())).shape[1]
    about = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    return ScoreBook(table.drop_columns(names), classes, found), about


def _condition(name: str) -> Condition:
    features, probe, condition, draw = name.split("/")
    return Condition(features, probe, condition, int(draw))


def _vectors(column: pa.ChunkedArray) -> Scores:
    whole = column.combine_chunks()
    flat: Scores = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(whole), -1).astype(np.float32)
