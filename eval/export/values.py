"""What is drawn over a slide: clusters of the embeddings, or the scores of a probe."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import DataError
from eval.export.table import EmbeddedTable
from eval.features import read_embeddings
from eval.measure.probe import Labelled, fit
from eval.measure.readouts import PRIMARY
from eval.results import load_results
from eval.run import snapshot_hash
from eval.session import subset

MOST_FITTED = 50_000  # patches that clusters are fitted on, a seeded subset of more


@dataclass(frozen=True)
class PatchValues:
    """A class of every patch of a table, and numbers of it."""

    name: str  # clusters or probe
    classes: list[str]
    labels: NDArray[np.int64]  # (n,) index into classes
    scores: dict[str, NDArray[np.float64]]  # (n,) in [0, 1], by name; none for clusters


def clusters(table: EmbeddedTable, count: int) -> PatchValues:
    """Cluster standardised embeddings by k-means, the largest cluster first."""
    if len(table.features) < count:
        raise DataError(f"{table.root}: {len(table.features)} patches for {count} clusters")
    model = make_pipeline(StandardScaler(), KMeans(count, n_init=4, random_state=0))
    model.fit(table.features[subset(len(table.features), MOST_FITTED)].astype(np.float64))
    labels = model.predict(table.features.astype(np.float64))
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    names = [f"cluster {i + 1}" for i in range(count)]
    return PatchValues("clusters", names, np.argsort(order)[labels], {})


def probe_scores(table: EmbeddedTable, run: Path) -> PatchValues:
    """Score patches by the linear probe of a run, fitted on train and selected on val.

    Raises:
        DataError: the run was not evaluated, has no labels, or did not make the embeddings.
    """
    hash_of_run = snapshot_hash(run)
    if table.facts["snapshot_xxh3"] != hash_of_run or table.facts["readout"] != PRIMARY:
        raise DataError(
            f"{table.root} holds {table.facts['readout']!r} of model "
            f"{table.facts['snapshot_xxh3']}, and the probe of {run} is of {PRIMARY!r} of "
            f"{hash_of_run}: embed the patches with this run"
        )
    names = load_results(run).protocol.classes or []
    splits = probe_splits(run)
    probe = fit(splits["train"], splits["val"])
    scores = probe.scores(table.features)
    if probe.classes.max() >= len(names):
        raise DataError(f"{run}/results.json names {len(names)} classes: evaluate the run again")
    classes = [names[label] for label in probe.classes]
    columns = dict(zip(classes, scores.T, strict=True))
    return PatchValues("probe", classes, scores.argmax(1).astype(np.int64), columns)


def probe_splits(run: Path) -> dict[str, Labelled]:
    """Read the embeddings of train and val that the evaluation of a run wrote.

    Raises:
        DataError: the run was not evaluated, or a file is damaged, of another model or data set.
    """
    hashes = load_results(run).hashes
    splits = {}
    for split in ("train", "val"):
        path = run / "embeddings" / f"{split}.parquet"
        if not path.is_file():
            raise DataError(f"{path} does not exist: evaluate with python -m eval.main {run}")
        features, rows = read_embeddings(path, {"split": split, **hashes})
        splits[split] = Labelled(features, rows["label"].to_numpy().astype(np.int64))
    return splits
