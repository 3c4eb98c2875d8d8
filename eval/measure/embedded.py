"""The embeddings of every split of a run, in RUN/embeddings."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval import run as runs
from eval.measure import readouts
from eval.measure.readouts import PRIMARY, Features
from eval.session import Job
from pipeline.reader import read_batches


def write_all(job: Job) -> dict[str, Features]:
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
            found = readouts.embed_batches(job.model, read_batches(split, rows), [PRIMARY])
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
