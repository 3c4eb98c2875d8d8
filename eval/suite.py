"""The embeddings of a run, and one linear probe for every readout and baseline on the same rows."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval import readouts
from eval import run as runs
from eval.baselines import BASELINES
from eval.job import Job
from eval.probe import Labelled, ProbeResult, probe
from eval.readouts import Features, Pixels
from shards.schema import DataError

PRIMARY = "mean"
PROBE_SPLITS = ("train", "val", "test")


def write_all_embeddings(job: Job) -> dict[str, Features]:
    """Embed every split into RUN/embeddings; the rows of the probes come back, by split."""
    about = {
        "readout": PRIMARY,
        "snapshot_xxh3": runs.snapshot_hash(job.run),
        "dataset_hash": job.data.hash,
    }
    kept: dict[str, Features] = {}
    for name, split in job.splits.items():
        path = job.run / "embeddings" / f"{name}.parquet"
        rows = job.embed_rows(split)
        if len(rows) < len(split):
            job.notice(f"{name}: embeddings of {len(rows):,} random images of {len(split):,}")
        with job.timed(f"embedding {name}, {len(rows):,} images"):
            found = readouts.embed_batches(
                job.model, readouts.image_batches(split, rows), [PRIMARY]
            )
            chosen = np.isin(rows, job.probe_rows(split))
            held: list[Features] = []
            batches = _holding((batch[PRIMARY] for batch in found), chosen, held)
            readouts.write_embeddings(path, split.table.take(rows), batches, about)
        kept[name] = np.concatenate(held)
    return kept


def _holding(
    batches: Iterator[Features], chosen: NDArray[np.bool_], held: list[Features]
) -> Iterator[Features]:
    """The same batches; their chosen rows are appended to `held` as they pass."""
    start = 0
    for batch in batches:
        held.append(batch[chosen[start : start + len(batch)]])
        start += len(batch)
        yield batch


def probe_all(job: Job, embedded: dict[str, Features]) -> dict[str, dict[str, Any]]:
    """Test scores by name of the features; empty where probing is impossible, with a notice."""
    if reason := _obstacle(job):
        job.notice(f"no probes: {reason}")
        return {}
    splits = {name: job.splits[name] for name in PROBE_SPLITS}
    rows = {name: job.probe_rows(split) for name, split in splits.items()}
    labels = {name: split.labels[rows[name]] for name, split in splits.items()}
    pixels = {name: readouts.images_of(split, rows[name]) for name, split in splits.items()}
    found = {}
    for name, kind, features in _feature_sets(job, embedded, pixels):
        start = time.monotonic()
        try:
            result = probe(*(Labelled(features[s], labels[s]) for s in PROBE_SPLITS))
        except DataError as error:
            job.notice(f"no probe of {name}: {error}")
            continue
        dimensions = features["train"].shape[1]
        found[name] = {"features": kind, "dimensions": dimensions, **asdict(result)}
        _tell(job, name, result, time.monotonic() - start)
    return found


def _obstacle(job: Job) -> str | None:
    if not job.data.card.labelled:
        return "the data set has no labels"
    missing = [name for name in PROBE_SPLITS if name not in job.splits]
    if missing:
        return f"there is no {' and no '.join(missing)} split; C is selected on val, never on test"
    return None


def _feature_sets(
    job: Job, embedded: dict[str, Features], pixels: dict[str, Pixels]
) -> Iterator[tuple[str, str, dict[str, Features]]]:
    """(name, readout or baseline, features by split), made one by one; the primary one first."""
    yield PRIMARY, "readout", {s: embedded[s] for s in PROBE_SPLITS}
    others = [name for name in job.config.readouts if name != PRIMARY]
    if others:
        with job.timed(f"other readouts ({', '.join(others)})"):
            codes = {
                s: readouts.embed_pixels(job.model, pixels[s], others, job.symmetry)
                for s in PROBE_SPLITS
            }
        for name in others:
            yield name, "readout", {s: codes[s][name] for s in PROBE_SPLITS}
    for name in BASELINES if job.config.baselines else ():
        with job.timed(f"baseline {name}"):
            transform = BASELINES[name](pixels["train"], job.model)
            made = {s: transform(pixels[s]) for s in PROBE_SPLITS}
        yield name, "baseline", made


def _tell(job: Job, name: str, result: ProbeResult, seconds: float) -> None:
    if not result.converged:
        job.notice(f"probe of {name}: the solver stopped before it converged for some C")
    job.say(
        f"probe {name}: AUROC {result.auroc:.3f}, balanced accuracy "
        f"{result.balanced_accuracy:.3f}, C {result.C:g}: {seconds:.1f} s"
    )
