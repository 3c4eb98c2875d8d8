"""Baselines: features without training, to compare every readout with.

Each is made from the train images and the model (its architecture and device) and maps images
(n, 32, 32, 3) to features (n, d).
"""

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA

from eval.features import Features
from eval.measure.readouts import embed_mean, embed_pixels
from models.vae import VAE, build
from pipeline.pixels import to_float, to_tensor
from shards.codec.png import Pixels
from shards.schema import CHANNELS, PATCH, PATCH_BYTES

Transform = Callable[[Pixels], Features]

PCA_COMPONENTS = 384
BINS = 16  # per channel of the histogram
GRID = 4  # cells per side of the colour grid, those of the latent
RANDOM_INIT_SEED = 0


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
