"""Embeddings from Python: `load(run).encode(images)`."""

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval import run as runs
from eval.measure import readouts
from eval.measure.metrics import batch_for, evaluating
from eval.measure.readouts import READOUTS, Features, Symmetry
from models import snapshot
from models.vae import VAE
from pipeline.pixels import to_float
from shards.schema import CHANNELS, PATCH

CHW, HWC = (CHANNELS, PATCH, PATCH), (PATCH, PATCH, CHANNELS)


class PatchEncoder:
    """A trained encoder. `dimensions` says how many numbers each readout gives."""

    def __init__(self, model: VAE, symmetry: Symmetry) -> None:
        self.model, self.symmetry = model, symmetry

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(self, images: NDArray[np.generic] | Tensor, readout: str = "mean") -> Features:
        """Embeddings (n, d), float32, in the order of the images.

        Args:
            images: any number of 32x32 RGB patches, (n, 3, 32, 32) or (n, 32, 32, 3); uint8 in
                0..255, or float in [0, 1]. An array or a tensor on any device.
            readout: "mean" (384 numbers, the primary one), "orbit_aligned", "orbit_invariant"
                (384 each) or "channel_stats" (48).

        Raises:
            ValueError: another shape, dtype or range, or an unknown readout.
        """
        if readout not in READOUTS:
            raise ValueError(f"unknown readout {readout!r}; there are {list(READOUTS)}")
        if isinstance(images, np.ndarray):
            images = np.require(images, requirements="W")  # torch warns of what it could not write
        x_BCHW = _checked(torch.as_tensor(images))
        found = [np.empty((0, self.dimensions(readout)), np.float32)]
        for part in x_BCHW.split(batch_for(self.device)):
            with evaluating(self.model):
                x = _unit_range(part.to(self.device))
                features = readouts.readouts_of(self._mean, x, [readout], self.symmetry)
            found.append(features[readout].cpu().numpy())
        return np.concatenate(found)

    def dimensions(self, readout: str = "mean") -> int:
        shape = self.model.config.latent_shape
        return 2 * shape[0] if readout == "channel_stats" else math.prod(shape)

    def _mean(self, x_BCHW: Tensor) -> Tensor:
        mean: Tensor = self.model.encoder(x_BCHW).mean
        return mean


def load(run: Path | str, device: str | torch.device | None = None) -> PatchEncoder:
    """The encoder of a finished run, on a GPU where torch can use one.

    Raises:
        DataError: `run` holds no snapshot, or one that is damaged.
    """
    run = Path(run)
    about = runs.load_about(run)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = snapshot.load(run / "snapshot").to(chosen)
    return PatchEncoder(model, Symmetry(about.group, about.fibres))


def _checked(images: Tensor) -> Tensor:
    """(n, 3, 32, 32), a view of the images."""
    shape = tuple(images.shape[1:])
    if images.ndim != 4 or shape not in (CHW, HWC):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected (n, 3, 32, 32) or (n, 32, 32, 3)"
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, expected uint8 in 0..255 or float in [0, 1]")
    if images.is_floating_point() and len(images):
        low, high = (float(v) for v in torch.aminmax(images))
        if not (low >= 0 and high <= 1):  # also for NaN
            raise ValueError(
                f"float images are in [{low:g}, {high:g}], expected [0, 1]: divide by 255, or "
                "pass uint8; do not normalise"
            )
    return images if shape == CHW else images.permute(0, 3, 1, 2)


def _unit_range(part: Tensor) -> Tensor:
    return to_float(part) if part.dtype == torch.uint8 else part.float()
