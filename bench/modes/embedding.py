"""`embed`: from packed patches to embeddings on the disk, beside the loop that one writes first.

Ours is the embedding command's own function: it opens and checks the data set, sorts it by path,
reads with CRCs, encodes in float32 and writes Parquet with compression. The plain loop reads
webdataset tars by DataLoader workers, encodes in NCHW float32 by batches of 256 and saves one
array; it is timed from its first batch on, so the start of its workers costs it nothing. Both give
the same numbers to TOLERANCE: the order of sums in a convolution is all that differs.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr
from dataclasses import asdict
from functools import partial
from io import StringIO
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from bench.data import packed
from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Mark, Say, rounds
from eval.embed import EmbedOptions, embed
from eval.encoder import load
from eval.measure.readouts import Features
from eval.run import About
from models import snapshot
from models.vae import VAE, ModelConfig, build
from pipeline.index import Dataset, open_dataset
from pipeline.reader import read_split

TOLERANCE = 1e-5  # on means of order 0.1 to 1
PLAIN_BATCH = 256
OURS, ENCODING, PLAIN = "ours", "ours, encoding alone", "plain loop"
ABOUT = About(
    preset="eq-dvae", seed=0, images_seen=1, noise_var=0.01, beta=1.0, equivariance=0.3,
    group="D4", fibres="trivial", stochastic=True, dataset_hash="0" * 16,
)  # fmt: skip


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `embed`, one a way: images/s of all images of the data set."""
    device = accelerator.device
    with packed(settings, say) as root, tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run, dataset = Path(folder) / "run", open_dataset(root)
        snapshot.save(build(ModelConfig(), 0), run / "snapshot", asdict(ABOUT))
        blocks = _ours(run, root, dataset, device)
        if settings.peers:
            from bench import plain_data

            say("embed: writing webdataset tars")
            plain_data.write_out(dataset.split("train"), Path(folder), PLAIN_BATCH)
            blocks[PLAIN] = partial(_plain, nchw(load(run, device).model), Path(folder))
        say(f"embed: timing {', '.join(blocks)}")
        for block in blocks.values():
            block()
        seconds = rounds(blocks, settings.repeats, say)
    return [
        {
            "kind": "embed",
            "name": name,
            "images_per_s": spread([1 / s for s in values]),
            "ours_is_faster_by": spread(
                [s / ours for s, ours in zip(values, seconds[OURS], strict=True)]
            ),
        }
        for name, values in seconds.items()
    ]


def _ours(
    run: Path, root: Path, dataset: Dataset, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Seconds an image of the whole path, and of encoding images that are in memory."""
    total, fresh = sum(map(len, dataset.splits.values())), count()
    pixels, encoder = read_split(dataset.split("train")), load(run, device)

    def whole() -> None:
        with redirect_stderr(StringIO()):  # its progress
            embed(run, root, EmbedOptions(run / f"out{next(fresh)}"))

    return {
        OURS: lambda: _seconds(whole, device) / total,
        ENCODING: lambda: _seconds(lambda: encoder.encode(pixels), device) / len(pixels),
    }


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    begin = Mark(device)
    call()
    return Mark(device).since(begin)


def nchw(model: VAE) -> VAE:
    """The model in the memory format that it has unless one asks for another."""
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _plain(model: VAE, folder: Path) -> float:
    """Seconds an image from the first batch on."""
    from bench import plain_data

    device = next(model.parameters()).device
    pin = device.type == "cuda"
    with closing(plain_data.tar_batches(folder, PLAIN_BATCH, pin)) as batches:
        first = next(batches)
        begin = Mark(device)
        features = plain_embeddings(model, chain([first], batches))
        np.save(folder / "embeddings.npy", features)
        return Mark(device).since(begin) / len(features)


def plain_embeddings(model: VAE, batches: Iterator[torch.Tensor]) -> Features:
    """The loop that one writes first: (n, 384) posterior means of float images (B, 3, 32, 32)."""
    device = next(model.parameters()).device
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as ours
        found = [model.encoder(images.to(device)).mean.flatten(1).cpu() for images in batches]
    embeddings: Features = torch.cat(found).numpy()
    return embeddings


def report(records: list[Record], settings: Settings) -> str:
    """A table, a row a way."""
    rows = [["embeddings by", "images/s", "ours is faster by"]]
    rows += [
        [r["name"], cell(r["images_per_s"]), cell(r["ours_is_faster_by"], ".2f")] for r in records
    ]
    return f"embeddings of a data set: {CELL}\n{table(rows)}"
