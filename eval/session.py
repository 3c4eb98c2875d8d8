"""What an evaluation works on: its configuration, the run, the model and the data, opened."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import DataError
from eval import run as runs
from eval.measure.baselines import BASELINES
from eval.measure.probe import PROBES
from eval.measure.readouts import READOUTS, Symmetry
from models import snapshot
from models.vae import VAE
from pipeline.corruptions import CorruptionConfig
from pipeline.index import Dataset, Split, open_dataset

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and on how much."""

    baselines: tuple[str, ...] = tuple(BASELINES)
    """Features that need no training, probed beside the model's."""
    probes: tuple[str, ...] = tuple(PROBES)
    """Classifiers: logistic for all features, the others for the primary readout and baselines."""
    budgets: bool = True
    """Probe with labels of 1, 2, 5 groups a class and of 1, 5, 10 % of them, 20 draws each."""
    robustness: bool = True
    """Probe corrupted test patches: five kinds, five severities."""
    figures: bool = True
    """Draw RUN/figures."""
    readouts: tuple[str, ...] = tuple(READOUTS)
    """Probed features of the model; an orbit costs eight encodings of every image (C4: four)."""
    orbit_probe: bool = True
    """Also fit a probe of the mean on every train image moved by every group element."""
    embed_images: int = 1_000_000
    """Of a split, at most, in RUN/embeddings (1.6 KB each): a seeded random subset."""
    probe_images: int = 50_000
    """Of those, at most, in the probes."""
    test_images: int = 20_000
    """At most, in reconstruction and latent metrics: a seeded random subset."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where torch can use one."""

    def __post_init__(self) -> None:
        for what, known in (("readouts", READOUTS), ("baselines", BASELINES), ("probes", PROBES)):
            if unknown := set(getattr(self, what)) - set(known):
                raise ValueError(f"unknown {what} {sorted(unknown)}; there are {list(known)}")
        for name in ("embed_images", "probe_images", "test_images"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 2")


@dataclass(frozen=True)
class Session:
    """A data set, opened, and how to probe it; `notices` gathers what a reader must know."""

    data: Dataset
    config: EvalConfig
    say: Say
    notices: list[str] = field(default_factory=list, kw_only=True)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that hold samples."""
        return {name: split for name, split in self.data.splits.items() if len(split)}

    @property
    def metrics_split(self) -> Split:
        """Test, or without one val, or whatever there is."""
        return next(self.splits[n] for n in ("test", "val", *self.splits) if n in self.splits)

    def notice(self, text: str) -> None:
        self.notices.append(text)
        self.say(f"notice: {text}")

    def embed_rows(self, split: Split) -> NDArray[np.int64]:
        return subset(len(split), self.config.embed_images)

    def probe_rows(self, split: Split) -> NDArray[np.int64]:
        """Some of the embedded rows."""
        rows = self.embed_rows(split)
        return rows[subset(len(rows), self.config.probe_images)]

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - start:.1f} s")


@dataclass(frozen=True)
class Job(Session):
    """A run and its data, opened."""

    run: Path
    about: runs.About
    model: VAE
    corruption: CorruptionConfig

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def symmetry(self) -> Symmetry:
        return Symmetry(self.about.group, self.about.fibres)


def open_job(run: Path, data: Path | None, config: EvalConfig, say: Say) -> Job:
    """Open RUN and its data set, or the one in `data`.

    Raises:
        DataError: the run or the data set cannot be used.
    """
    about = runs.load_about(run)
    model = snapshot.load(run / "snapshot").to(device_named(config.device))
    corruption = runs.load_corruption(run)
    dataset = open_dataset(data or runs.data_root(run))
    job = Job(dataset, config, say, run, about, model, corruption)
    if not job.splits:
        raise DataError(f"{dataset.root} holds no samples: there is nothing to evaluate on")
    counts = ", ".join(f"{name} {len(split):,}" for name, split in job.splits.items())
    say(f"evaluating {run} on {dataset.root} ({counts}), on {job.device}")
    if dataset.hash != about.dataset_hash:
        job.notice(
            f"the run trained on data set {about.dataset_hash}, and is evaluated on another, "
            f"{dataset.hash}"
        )
    if job.metrics_split.name != "test":
        job.notice(f"there is no test split: metrics are of {job.metrics_split.name}")
    return job


def device_named(name: str) -> torch.device:
    """Of "auto", a GPU where torch can use one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def subset(count: int, limit: int) -> NDArray[np.int64]:
    """All rows, or a seeded random subset of `limit`, in order."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))
