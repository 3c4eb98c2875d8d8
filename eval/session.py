"""The opened data set, run and model of an evaluation."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.console import log
from common.errors import DataError
from eval import run as runs
from eval.config import EvalConfig
from eval.measure.metrics import Symmetry
from models import snapshot
from models.vae import VAE
from pipeline.config import CorruptionConfig
from pipeline.index import Dataset, Split, open_dataset
from pipeline.normalisation import Normalisation, Statistics, Unit
from pipeline.units import StainTable, fit_dataset, normalised


@dataclass(frozen=True)
class Session:
    """An opened data set and how to probe it; `notices` are warnings for readers of the results."""

    data: Dataset
    config: EvalConfig
    notices: list[str] = field(default_factory=list, kw_only=True)
    start: float = field(default_factory=time.monotonic, kw_only=True)

    @property
    def seconds(self) -> float:
        """Seconds since the session was opened."""
        return round(time.monotonic() - self.start, 1)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that hold samples."""
        return {name: split for name, split in self.data.splits.items() if len(split)}

    @property
    def metrics_split(self) -> Split:
        """The test split, or without one val, or the first that holds samples."""
        return next(self.splits[n] for n in ("test", "val", *self.splits) if n in self.splits)

    def notice(self, text: str) -> None:
        """Log a notice and keep it for the results."""
        self.notices.append(text)
        log.info(f"notice: {text}")

    def embed_rows(self, split: Split) -> NDArray[np.int64]:
        """Rows of a split that are embedded, ascending."""
        return subset(len(split), self.config.embed_images)

    def probe_rows(self, split: Split) -> NDArray[np.int64]:
        """Rows of a split that are probed, a subset of the embedded ones, ascending."""
        rows = self.embed_rows(split)
        return rows[subset(len(rows), self.config.probe_images)]


@dataclass(frozen=True)
class RunSession(Session):
    """An opened run and its data set."""

    run: Path
    info: runs.RunInfo
    model: VAE
    corruption: CorruptionConfig

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry(self.info.group, self.info.fibres)

    @cached_property  # read at every file that is written
    def hashes(self) -> dict[str, str]:
        """Hashes of the model and the data set: metadata of files of embeddings and scores."""
        return {"snapshot_xxh3": runs.snapshot_hash(self.run), "dataset_hash": self.data.hash}


@contextmanager
def timed(task: str) -> Iterator[None]:
    """Log the seconds that the block takes."""
    start = time.monotonic()
    yield
    log.info(f"{task}: {time.monotonic() - start:.1f} s")


def open_run(run: Path, data: Path | None, config: EvalConfig) -> RunSession:
    """Open a run, and the data set in `data`, by default the one that the run was trained on.

    Raises:
        DataError: the run or the data set cannot be used.
    """
    info = runs.load_info(run)
    runs.require_own_snapshot(run)
    model = snapshot.load(run / "snapshot").to(device_named(config.device))
    corruption = runs.load_corruption(run)
    dataset = open_dataset(data or runs.data_root(run))
    dataset = normalised(dataset, stain_table(dataset, run, info.normalisation))
    session = RunSession(dataset, config, run, info, model, corruption)
    if not session.splits:
        raise DataError(f"{dataset.root} has no samples to evaluate on")
    counts = ", ".join(f"{name} {len(split):,}" for name, split in session.splits.items())
    log.info(f"evaluating {run} on {dataset.root} ({counts}), on {session.device}")
    if dataset.hash != info.dataset_hash:
        session.notice(
            f"the run trained on data set {info.dataset_hash}, and is evaluated on another, "
            f"{dataset.hash}"
        )
    if session.metrics_split.name != "test":
        session.notice(f"there is no test split: metrics are of {session.metrics_split.name}")
    return session


def stain_table(
    dataset: Dataset,
    run: Path | str,
    normalisation: Normalisation | None,
    fit: Callable[[Dataset, Unit, Statistics], StainTable] = fit_dataset,
) -> StainTable | None:
    """Return how the patches of a data set are normalised for a run; None for one that does not.

    Of the run's own data set RUN/stain.json holds the statistics; those of another `fit` measures.

    Raises:
        DataError: the data set lacks the units of the run's normalisation, or RUN/stain.json is
            of another run.
    """
    if normalisation is None:
        return None
    table = runs.load_stain(run)
    if table is not None and table.normalisation != normalisation:
        raise DataError(
            f"{Path(run) / runs.STAIN} is of another run than its snapshot: restore the file, or "
            "remove it to measure the statistics again"
        )
    if table is None or table.dataset_hash != dataset.hash:
        table = fit(dataset, normalisation.unit, normalisation.target)
    return table


def device_named(name: str) -> torch.device:
    """Return the device of this name; "auto" is a GPU where torch can use one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def subset(count: int, limit: int) -> NDArray[np.int64]:
    """Draw at most `limit` of `count` rows from a fixed seed, ascending."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def in_turn(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Draw at most `count` rows from a fixed seed, one of every class in turn."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)  # how many of its class come before
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        turn[members] = np.arange(len(members))
    return np.lexsort((labels, turn))[:count]
