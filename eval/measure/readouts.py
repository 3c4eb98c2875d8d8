"""Features to probe: readouts of a model, and baselines without training to compare them with.

A readout is made of the codes of a model, or of the maps inside its encoder. A baseline is made
from the train images and the model (its architecture and device) and maps images (n, 32, 32, 3) to
features.

Shapes: n images, d features, G = |group| elements, codes mu (n, 24, 4, 4). Features are float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from eval.features import Features
from eval.measure.metrics import (
    TRIVIAL_D4,
    Encode,
    Symmetry,
    batch_for,
    evaluating,
    relative_errors,
    rho,
)
from models.config import LATENT_SIDE
from models.vae import VAE, build
from pipeline import d4
from pipeline.config import ORDER
from pipeline.pixels import to_float, to_tensor
from pipeline.reader import READ_SIZE
from shards.codec.png import Pixels
from shards.schema import CHANNELS, PATCH, PATCH_BYTES

PRIMARY = "mean"  # the readout of every headline number
PCA_COMPONENTS = 384
BINS = 16  # per channel of the histogram
GRID = 4  # cells per side of the colour grid, those of the latent
RANDOM_INIT_SEED = 0

Source = Literal["mean", "stages"]
Transform = Callable[[Pixels], Features]


@dataclass(frozen=True)
class Readout:
    """Features made of what an encoder gives for an orbit, (|G|, b, ...); g = 0 is the identity."""

    orbit: bool  # False: the images themselves are enough, (1, b, ...)
    compute: Callable[[Tensor, Symmetry], Tensor]  # to features (b, d)
    act: Callable[[Tensor, int, Symmetry], Tensor]  # the action of a group element on features
    source: Source = "mean"  # codes (b, 24, 4, 4), or `stage_stats` (b, 480)


def orbit_aligned(mu_GBCNN: Tensor, symmetry: Symmetry) -> Tensor:
    """Average rho(g)^-1 mu(g x) over the group: the mean itself for an equivariant encoder."""
    moved_back = [rho(mu, d4.inverse(g), symmetry) for g, mu in enumerate(mu_GBCNN)]
    return torch.stack(moved_back).mean(0).flatten(1)


def channel_stats(maps: Sequence[Tensor]) -> Tensor:
    """Compute the spatial means (b, C) of all channels of maps (b, c, N, N), C in all, then the
    (biased) standard deviations: (b, 2 C).
    """
    cells = [x.flatten(2) for x in maps]
    deviations = [x.std(2, correction=0) for x in cells]
    return torch.cat([*(x.mean(2) for x in cells), *deviations], 1)


def as_code(features: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    """Act on features that are a flattened code (b, C N N)."""
    mu_BCNN = features.view(len(features), -1, LATENT_SIDE, LATENT_SIDE)
    return rho(mu_BCNN, element, symmetry).flatten(1)


def as_channels(features: Tensor, element: int, symmetry: Symmetry) -> Tensor:
    """Permute channel statistics: channels of regular fibres change places, trivial ones stay."""
    stats_BC11 = features.view(2 * len(features), -1, 1, 1)
    return rho(stats_BC11, element, symmetry).view(len(features), -1)


READOUTS: dict[str, Readout] = {
    "mean": Readout(False, lambda mu, _: mu[0].flatten(1), as_code),  # the primary one
    "orbit_aligned": Readout(True, orbit_aligned, as_code),
    "orbit_invariant": Readout(True, lambda mu, _: mu.mean(0).flatten(1), lambda x, *_: x),
    "channel_stats": Readout(False, lambda mu, _: channel_stats(mu[:1].unbind()), as_channels),
    "stage_stats": Readout(False, lambda stats, _: stats[0], as_channels, "stages"),
    "stage_stats_invariant": Readout(
        True, lambda stats, _: stats.mean(0), lambda x, *_: x, "stages"
    ),
}


def encoders_of(model: VAE) -> dict[Source, Encode]:
    """Return what each kind of readout is made of, from float images (b, 3, 32, 32)."""
    return {
        "mean": lambda x: model.encoder(x).mean,
        "stages": lambda x: channel_stats(model.stages(x)),
    }


def equivariance_of(
    encoders: Mapping[Source, Encode], images: Tensor, name: str, symmetry: Symmetry = TRIVIAL_D4
) -> dict[int, float]:
    """Measure the relative equivariance error of a readout by element of the group of `symmetry`.

    Args:
        images: uint8 (n, 3, 32, 32); an orbit readout encodes each |G|^2 times.
    """
    return relative_errors(
        lambda x: readouts_of(encoders, x, [name], symmetry)[name],
        images,
        lambda features, g: READOUTS[name].act(features, g, symmetry),
        range(1, ORDER[symmetry.group]),
    )


def readouts_of(
    encoders: Mapping[Source, Encode],
    x: Tensor,
    readouts: Iterable[str],
    symmetry: Symmetry = TRIVIAL_D4,
) -> dict[str, Tensor]:
    """Compute readouts of float images (b, 3, 32, 32).

    The orbit is encoded once for all readouts of one source.
    """
    features: dict[str, Tensor] = {}
    for source, encode in encoders.items():
        by_name = {n: READOUTS[n] for n in readouts if READOUTS[n].source == source}
        order = ORDER[symmetry.group] if any(r.orbit for r in by_name.values()) else 1
        if by_name:
            encoded = torch.stack([encode(d4.act_one(x, g)) for g in range(order)])
            features |= {n: readout.compute(encoded, symmetry) for n, readout in by_name.items()}
    return features


def embed_batches(
    model: VAE, batches: Iterable[Pixels], readouts: Iterable[str], symmetry: Symmetry = TRIVIAL_D4
) -> Iterator[dict[str, Features]]:
    """Compute readouts of batches of images, one dictionary per batch."""
    device = next(model.parameters()).device
    readouts, encoders = tuple(readouts), encoders_of(model)
    for pixels in batches:
        images = to_tensor(pixels, device)
        with evaluating(model):
            passes = [
                readouts_of(encoders, to_float(x), readouts, symmetry)
                for x in images.split(batch_for(device))
            ]
        yield {name: torch.cat([f[name] for f in passes]).cpu().numpy() for name in readouts}


def embed_pixels(
    model: VAE, pixels: Pixels, readouts: Iterable[str], symmetry: Symmetry = TRIVIAL_D4
) -> dict[str, Features]:
    """Compute readouts of images in memory."""
    names = tuple(readouts)
    batches = (pixels[i : i + READ_SIZE] for i in range(0, len(pixels), READ_SIZE))
    features = list(embed_batches(model, batches, names, symmetry))
    return {name: np.concatenate([batch[name] for batch in features]) for name in names}


def embed_mean(model: VAE, pixels: Pixels) -> Features:
    """Compute the primary readout (n, d), the posterior mean, of images in memory."""
    return embed_pixels(model, pixels, [PRIMARY])[PRIMARY]


def embed_orbit(model: VAE, pixels: Pixels, symmetry: Symmetry) -> Features:
    """Compute posterior means (|G| n, d) of all moved images, one group element after another."""
    images = to_tensor(pixels)
    moved = (
        d4.act_one(images, g).permute(0, 2, 3, 1).contiguous().numpy()
        for g in range(ORDER[symmetry.group])
    )
    return np.concatenate([embed_mean(model, view) for view in moved])


def mean_rgb(train: Pixels, model: VAE) -> Transform:
    """Mean colour: 3 numbers."""
    return lambda pixels: _scaled(pixels).mean((1, 2), dtype=np.float32)


def rgb_histogram(train: Pixels, model: VAE) -> Transform:
    """Histogram: shares of the pixels in 16 equal bins per channel, 48 numbers."""

    def transform(pixels: Pixels) -> Features:
        channels = pixels.reshape(len(pixels), -1, CHANNELS).swapaxes(1, 2)
        bins = channels.reshape(-1, channels.shape[2]) // (256 // BINS)
        rows = np.arange(len(bins))[:, None] * BINS
        counts = np.bincount((rows + bins).reshape(-1), minlength=len(bins) * BINS)
        shares = counts.reshape(len(pixels), -1) / channels.shape[2]
        return shares.astype(np.float32)

    return transform


def colour_grid(train: Pixels, model: VAE) -> Transform:
    """Mean colours of 4x4 cells: 48 numbers."""
    side = PATCH // GRID
    shape = (-1, GRID, side, GRID, side, CHANNELS)
    return lambda pixels: _scaled(pixels).reshape(shape).mean((2, 4)).reshape(len(pixels), -1)


def principal_components(train: Pixels, model: VAE) -> Transform:
    """Principal components of the raw pixels: 384, or as many as there are train images."""
    components = min(PCA_COMPONENTS, len(train))
    pca = PCA(components, svd_solver="randomized", random_state=0)
    pca.fit(_scaled(train).reshape(-1, PATCH_BYTES))
    return lambda pixels: pca.transform(_scaled(pixels).reshape(-1, PATCH_BYTES))


def raw_pixels(train: Pixels, model: VAE) -> Transform:
    """Pixels themselves: 3072 numbers."""
    return lambda pixels: _scaled(pixels).reshape(-1, PATCH_BYTES)


def random_init(train: Pixels, model: VAE) -> Transform:
    """Posterior mean of an untrained encoder of the model's architecture: 384 numbers."""
    untrained = _untrained(model)
    return lambda pixels: embed_mean(untrained, pixels)


def random_init_stages(train: Pixels, model: VAE) -> Transform:
    """`stage_stats` of an untrained encoder of the model's architecture: 480 numbers."""
    untrained = _untrained(model)
    return lambda pixels: embed_pixels(untrained, pixels, ["stage_stats"])["stage_stats"]


BASELINES: dict[str, Callable[[Pixels, VAE], Transform]] = {
    "mean_rgb": mean_rgb,
    "rgb_histogram": rgb_histogram,
    "colour_grid": colour_grid,
    "pca384": principal_components,
    "raw_pixels": raw_pixels,
    "random_init": random_init,
    "random_init_stages": random_init_stages,
}


def _untrained(model: VAE) -> VAE:
    return build(model.config, RANDOM_INIT_SEED).to(next(model.parameters()).device)


def _scaled(pixels: Pixels) -> Features:
    """Scale uint8 pixels (n, 32, 32, 3) to [0, 1]."""
    return to_float(to_tensor(pixels)).permute(0, 2, 3, 1).numpy()
