"""`embed`: from packed patches to embeddings on the disk, beside a plain loop.

Ours is the function behind `eval.embed`: it opens and checks the data set, sorts it by path, checks
CRCs, encodes in float32 and writes compressed Parquet. The plain loop reads webdataset tars with
DataLoader workers, encodes in NCHW float32 in batches of 256 and saves one array; it is timed from
its first batch on, without the start of its workers. Both agree to 1e-5: only the order of sums in
convolutions differs.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from bench.patches import packed_folder
from bench.records import CELL, Record, Spread
from bench.settings import Settings
from bench.timing import Mark, log, rounds, timed
from common.console import table
from common.machine import keep_freed_memory
from eval.config import EmbedOptions
from eval.embedding import embed
from eval.encoder import load
from eval.features import Features
from eval.run import RunInfo
from models import snapshot
from models.config import ModelConfig
from models.vae import VAE, build
from pipeline.index import Dataset, open_dataset
from pipeline.reader import read_split

PLAIN_BATCH = 256
OURS, ENCODING, PLAIN = "ours", "ours, encoding alone", "plain loop"
RUN_INFO = RunInfo(
    preset="eq-dvae",
    seed=0,
    images_seen=1,
    noise_var=0.01,
    beta=1.0,
    equivariance=0.3,
    group="D4",
    fibres="trivial",
    stochastic=True,
    dataset_hash="0" * 16,
)


class EmbedSpeed(Record, tag="embed", frozen=True):
    """Speed of one way to embed all images of a data set."""

    name: str
    images_per_s: Spread
    ours_is_faster_by: Spread


def measure(settings: Settings, accelerator: Accelerator) -> list[EmbedSpeed]:
    """Time each way in turn."""
    keep_freed_memory()  # as the command does
    device = accelerator.device
    with packed_folder(settings) as root, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run, dataset = Path(folder) / "run", open_dataset(root)
        snapshot.save(build(ModelConfig(), 0), run / "snapshot", asdict(RUN_INFO))
        blocks = _ours(run, root, dataset, device)
        if settings.peers:
            from bench import plain_trainer  # needs webdataset

            log.info("embed: writing webdataset tars")
            plain_trainer.write_out(dataset.split("train"), Path(folder), PLAIN_BATCH)
            model = plain_trainer.nchw(load(run, device).model)
            blocks[PLAIN] = partial(_plain, model, Path(folder))
        log.info(f"embed: timing {', '.join(blocks)}")
        for block in blocks.values():
            block()
        seconds = rounds(blocks, settings.repeats)
    return [
        EmbedSpeed(
            name, Spread.of([1 / s for s in values]), Spread.of_ratios(values, seconds[OURS])
        )
        for name, values in seconds.items()
    ]


def _ours(
    run: Path, root: Path, dataset: Dataset, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Seconds per image of the whole path, and of encoding images that are in memory."""
    total, fresh = sum(map(len, dataset.splits.values())), count()
    pixels, encoder = read_split(dataset.split("train")), load(run, device)

    def whole() -> None:
        embed(run, root, EmbedOptions(run / f"out{next(fresh)}"))

    return {
        OURS: lambda: timed(whole, 1, device) / total,
        ENCODING: lambda: timed(lambda: encoder.encode(pixels), 1, device) / len(pixels),
    }


def _plain(model: VAE, folder: Path) -> float:
    """Seconds per image from the first batch on."""
    from bench import plain_trainer

    device = next(model.parameters()).device
    pin = device.type == "cuda"
    with closing(plain_trainer.tar_batches(folder, PLAIN_BATCH, pin)) as batches:
        first = next(batches)
        begin = Mark(device)
        features = plain_embeddings(model, chain([first], batches))
        np.save(folder / "embeddings.npy", features)
        return Mark(device).since(begin) / len(features)


def plain_embeddings(model: VAE, batches: Iterator[torch.Tensor]) -> Features:
    """Encode batches of float images (B, 3, 32, 32) by a plain loop: posterior means (n, 384)."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as ours
        means = [model.encoder(images.to(device)).mean.flatten(1).cpu() for images in batches]
    embeddings: Features = torch.cat(means).numpy()
    return embeddings


def report(records: list[EmbedSpeed], settings: Settings) -> str:
    """Show a row per way."""
    rows = [["embeddings by", "images/s", "ours is faster by"]]
    rows += [[r.name, f"{r.images_per_s}", f"{r.ours_is_faster_by:,.2f}"] for r in records]
    return f"embeddings of a data set: {CELL}\n{table(rows)}"
