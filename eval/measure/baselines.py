"""Features without training, to stand beside every readout: fitted on the train images (with the
model's architecture and device), then images to features.
"""

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA

from eval.measure.readouts import Features, Pixels, embed_pixels
from models.vae import VAE, build
from pipeline.pixels import to_float, to_tensor
from shards.schema import CHANNELS, PATCH, PATCH_BYTES

Transform = Callable[[Pixels], Features]

PCA_COMPONENTS = 384
BINS = 16  # of the histogram of a channel
GRID = 4  # cells a side of the colour grid, those of the latent
RANDOM_INIT_SEED = 0


def _mean_rgb(train: Pixels, model: VAE) -> Transform:
    """3: the mean colour."""
    return lambda pixels: _unit(pixels).mean((1, 2), dtype=np.float32)


def _histogram(train: Pixels, model: VAE) -> Transform:
    """48: shares of the pixels in 16 equal bins a channel."""

    def transform(pixels: Pixels) -> Features:
        channels = pixels.reshape(len(pixels), -1, CHANNELS).swapaxes(1, 2)
        bins = channels.reshape(-1, channels.shape[2]) // (256 // BINS)
        rows = np.arange(len(bins))[:, None] * BINS
        counts = np.bincount((rows + bins).reshape(-1), minlength=len(bins) * BINS)
        shares = counts.reshape(len(pixels), -1) / channels.shape[2]
        return shares.astype(np.float32)

    return transform


def _colour_grid(train: Pixels, model: VAE) -> Transform:
    """48: the mean colours of 4x4 cells."""
    side = PATCH // GRID
    shape = (-1, GRID, side, GRID, side, CHANNELS)
    return lambda pixels: _unit(pixels).reshape(shape).mean((2, 4)).reshape(len(pixels), -1)


def _pca(train: Pixels, model: VAE) -> Transform:
    """384 (or as many as there are train images): principal components of the raw pixels."""
    components = min(PCA_COMPONENTS, len(train))
    pca = PCA(components, svd_solver="randomized", random_state=0)
    pca.fit(_unit(train).reshape(-1, PATCH_BYTES))
    return lambda pixels: pca.transform(_unit(pixels).reshape(-1, PATCH_BYTES))


def _raw(train: Pixels, model: VAE) -> Transform:
    """3072: the pixels themselves."""
    return lambda pixels: _unit(pixels).reshape(-1, PATCH_BYTES)


def _random_init(train: Pixels, model: VAE) -> Transform:
    """384: the mean of an untrained encoder of the model's architecture."""
    device = next(model.parameters()).device
    untrained = build(model.config, RANDOM_INIT_SEED).to(device)

    return lambda pixels: embed_pixels(untrained, pixels, ["mean"])["mean"]


BASELINES: dict[str, Callable[[Pixels, VAE], Transform]] = {
    "mean_rgb": _mean_rgb,
    "rgb_histogram": _histogram,
    "colour_grid": _colour_grid,
    "pca384": _pca,
    "raw_pixels": _raw,
    "random_init": _random_init,
}


def _unit(pixels: Pixels) -> Features:
    return to_float(to_tensor(pixels)).permute(0, 2, 3, 1).numpy()
