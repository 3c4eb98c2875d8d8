"""Images to features: the readouts of a model, and embeddings as Parquet.

Shapes: n images, d features, G = |group| elements, codes mu (n, 24, 4, 4). Features are float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.files import atomic_path
from eval.measure.metrics import Encode, batch_for, evaluating, relative_errors, rho
from models.vae import LATENT_SIDE, VAE
from pipeline import d4
from pipeline.index import Split
from pipeline.pixels import to_float, to_tensor
from pipeline.reader import READ_SIZE, read_batches

Pixels = NDArray[np.uint8]  # (n, 32, 32, 3)
Features = NDArray[np.float32]  # (n, d)

ROW_GROUP = 16_384
KEPT_COLUMNS = ("key", "label", "source", "slide", "patient", "site", "path")
PRIMARY = "mean"  # the readout of every headline number


@dataclass(frozen=True)
class Symmetry:
    """The group of the orbit readouts and how it acts on codes."""

    group: str = "D4"
    fibres: str = "trivial"


@dataclass(frozen=True)
class Readout:
    """A feature of the codes mu(g x) of an orbit (|G|, b, 24, 4, 4), element 0 the identity."""

    orbit: bool  # False: the codes of x alone are enough, shaped (1, b, 24, 4, 4)
    of: Callable[[Tensor, Symmetry], Tensor]
    act: Callable[[Tensor, int, Symmetry], Tensor]  # what a group element should do to it


def _orbit_aligned(mu_GBCNN: Tensor, symmetry: Symmetry) -> Tensor:
    """(1/|G|) sum over g of rho(g)^-1 mu(g x): the mean itself for an equivariant encoder."""
    back = [
        rho(mu, d4.inverse(g), symmetry.group, symmetry.fibres) for g, mu in enumerate(mu_GBCNN)
    ]
    return torch.stack(back).mean(0).flatten(1)


def _channel_stats(mu_GBCNN: Tensor, symmetry: Symmetry) -> Tensor:
    """Spatial mean and (biased) standard deviation of every channel."""
    cells = mu_GBCNN[0].flatten(2)
    return torch.cat([cells.mean(2), cells.std(2, correction=0)], 1)


def _as_code(features: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    mu_BCNN = features.view(len(features), -1, LATENT_SIDE, LATENT_SIDE)
    return rho(mu_BCNN, element, symmetry.group, symmetry.fibres).flatten(1)


def _as_channels(features: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    """Channels of regular fibres change places, wherever their cells go."""
    stats_BC11 = features.view(2 * len(features), -1, 1, 1)
    return rho(stats_BC11, element, symmetry.group, symmetry.fibres).view(len(features), -1)


def _unmoved(features: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    return features


READOUTS: dict[str, Readout] = {
    "mean": Readout(False, lambda mu, _: mu[0].flatten(1), _as_code),  # the primary one
    "orbit_aligned": Readout(True, _orbit_aligned, _as_code),
    "orbit_invariant": Readout(True, lambda mu, _: mu.mean(0).flatten(1), _unmoved),
    "channel_stats": Readout(False, _channel_stats, _as_channels),
}


def equivariance_of(
    encode: Encode, images: Tensor, name: str, symmetry: Symmetry = Symmetry()
) -> dict[int, float]:
    """The relative error of a readout by group element, of the group of `symmetry`.

    Args:
        images: uint8 (n, 3, 32, 32); an orbit readout encodes each |G|^2 times.
    """
    return relative_errors(
        lambda x: readouts_of(encode, x, [name], symmetry)[name],
        images,
        lambda features, g: READOUTS[name].act(features, g, symmetry),
        range(1, d4.ORDER[symmetry.group]),
    )


def readouts_of(
    encode: Encode, x: Tensor, readouts: Iterable[str], symmetry: Symmetry = Symmetry()
) -> dict[str, Tensor]:
    """Features of float images (b, 3, 32, 32) by several readouts; the orbit is encoded once."""
    chosen = {name: READOUTS[name] for name in readouts}
    order = d4.ORDER[symmetry.group] if any(r.orbit for r in chosen.values()) else 1
    codes = torch.stack([encode(d4.act_one(x, g)) for g in range(order)])
    return {name: readout.of(codes, symmetry) for name, readout in chosen.items()}


def embed_batches(
    model: VAE, batches: Iterable[Pixels], readouts: Iterable[str], symmetry: Symmetry = Symmetry()
) -> Iterator[dict[str, Features]]:
    """Features of batches of images by several readouts, a dictionary a batch."""
    device = next(model.parameters()).device
    readouts = tuple(readouts)
    for pixels in batches:
        images = to_tensor(pixels, device)
        with evaluating(model):
            found = [
                readouts_of(lambda v: model.encoder(v).mean, to_float(part), readouts, symmetry)
                for part in images.split(batch_for(device))
            ]
        yield {name: torch.cat([f[name] for f in found]).cpu().numpy() for name in readouts}


def embed_pixels(
    model: VAE, pixels: Pixels, readouts: Iterable[str], symmetry: Symmetry = Symmetry()
) -> dict[str, Features]:
    """Features of images in memory by several readouts."""
    parts = (pixels[i : i + READ_SIZE] for i in range(0, len(pixels), READ_SIZE))
    found = list(embed_batches(model, parts, readouts := tuple(readouts), symmetry))
    return {name: np.concatenate([batch[name] for batch in found]) for name in readouts}


def embed_orbit(model: VAE, pixels: Pixels, symmetry: Symmetry) -> Features:
    """(|G| n, d) posterior means of every moved image: all of one group element, then the next."""
    images = to_tensor(pixels)
    moved = (
        d4.act_one(images, g).permute(0, 2, 3, 1).contiguous().numpy()
        for g in range(d4.ORDER[symmetry.group])
    )
    return np.concatenate([embed_pixels(model, part, [PRIMARY])[PRIMARY] for part in moved])


def embed_split(
    model: VAE, split: Split, readout: str = "mean", symmetry: Symmetry = Symmetry()
) -> Features:
    """(n, d) features of a whole split in sample order; `readout` is a key of READOUTS."""
    batches = embed_batches(model, read_batches(split), [readout], symmetry)
    return np.concatenate([batch[readout] for batch in batches])


def write_embeddings(
    path: Path, samples: pa.Table, batches: Iterable[Features], about: Mapping[str, str]
) -> None:
    """Stream the embeddings of `samples`, rows of a sidecar, in their order to a Parquet file.

    Columns: KEPT_COLUMNS of the sidecar and `embedding`, a fixed-size list of
    float32. `about` becomes metadata of the file. Rows are written in groups: memory does not
    grow with the split.
    """
    rows = samples.select(KEPT_COLUMNS)
    with atomic_path(path) as temp:
        writer, done = None, 0
        for group in _groups(batches):
            table = with_embeddings(rows.slice(done, len(group)), group)
            if writer is None:
                schema = table.schema.with_metadata(dict(about))
                writer = pq.ParquetWriter(temp, schema, compression="zstd")
            writer.write_table(table.replace_schema_metadata(dict(about)), ROW_GROUP)
            done += len(group)
        if writer is None or done != len(rows):
            raise ValueError(f"{path}: {done} embeddings for {len(rows)} samples")
        writer.close()


def read_embeddings(path: Path) -> tuple[Features, pa.Table]:
    """The embeddings (n, d) of a file of `write_embeddings`, and its other columns."""
    table = pq.read_table(path)
    column = table["embedding"].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1), table.drop_columns(["embedding"])


def _groups(batches: Iterable[Features]) -> Iterator[Features]:
    held: list[Features] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= ROW_GROUP:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def with_embeddings(rows: pa.Table, features: Features, name: str = "embedding") -> pa.Table:
    """The rows with one more column, a fixed-size list of float32."""
    values = pa.array(np.ascontiguousarray(features, np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
    return rows.append_column(name, column)
