"""Embeddings from Python: `load(run).encode(images)`, with a run, a snapshot or a hub id.

On a CPU, call `common.machine.keep_freed_memory` once in a process that embeds many patches, as the
commands do: it halves the time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.features import Features
from eval.measure import readouts
from eval.measure.metrics import Symmetry, batch_for, evaluating
from eval.measure.readouts import READOUTS
from eval.run import load_info
from models import snapshot
from models.hub import locate
from models.vae import VAE
from pipeline.normalisation import MIN_PATCHES, Normalisation, Normaliser, statistics
from pipeline.pixels import to_float, to_pixels, to_tensor
from shards.codec.png import Pixels
from shards.schema import CHANNELS, PATCH

CHW, HWC = (CHANNELS, PATCH, PATCH), (PATCH, PATCH, CHANNELS)


class PatchEncoder:
    """A trained encoder of patches."""

    def __init__(
        self, model: VAE, symmetry: Symmetry, normalisation: Normalisation | None = None
    ) -> None:
        self.model, self.symmetry, self.normalisation = model, symmetry, normalisation

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode(
        self,
        images: NDArray[np.generic] | Tensor,
        readout: str = "mean",
        units: Sequence[str | int] | NDArray[np.generic] | None = None,
    ) -> Features:
        """Embed images: float32 (n, d) in their order.

        A run that was trained with `normalise` sees them as 8-bit images whose staining is
        normalised, from the statistics of their unit (site, slide or source image) to its own.

        Args:
            images: any number of 32x32 RGB patches, (n, 3, 32, 32) or (n, 32, 32, 3), uint8 in
                0..255 or float in [0, 1]; an array, or a tensor on any device.
            readout: "mean" (384 numbers, the primary one), "orbit_aligned", "orbit_invariant"
                (384 each), "channel_stats" (48), "stage_stats" or "stage_stats_invariant" (480).
            units: the unit of each image, for a run that normalises; by default all are of one.

        Raises:
            ValueError: another shape, dtype or range, an unknown readout, or a unit of fewer than
                8 images.
        """
        x_BCHW = _checked(images)
        if self.normalisation is not None and len(x_BCHW):
            x_BCHW = to_tensor(_normalised(x_BCHW, units, self.normalisation))
        return self._embed(x_BCHW, readout)

    def embed(self, images: NDArray[np.generic] | Tensor, readout: str = "mean") -> Features:
        """Embed images as `encode`, without normalisation: as patches that are read normalised."""
        return self._embed(_checked(images), readout)

    def _embed(self, x_BCHW: Tensor, readout: str) -> Features:
        if readout not in READOUTS:
            raise ValueError(f"unknown readout {readout!r}; there are {list(READOUTS)}")
        encoders, batches = readouts.encoders_of(self.model), []
        for images_BCHW in x_BCHW.split(batch_for(self.device)):
            with evaluating(self.model):
                on_device = images_BCHW.to(self.device)
                x = to_float(on_device) if on_device.dtype == torch.uint8 else on_device.float()
                features = readouts.readouts_of(encoders, x, [readout], self.symmetry)
            batches.append(features[readout].cpu().numpy())
        return np.concatenate(batches)

    def dimensions(self, readout: str = "mean") -> int:
        """Count the numbers d that a readout gives per image."""
        return self._embed(torch.zeros(1, CHANNELS, PATCH, PATCH), readout).shape[1]


def load(run: Path | str, device: str | torch.device | None = None) -> PatchEncoder:
    """Load a trained encoder, by default on a GPU where torch can use one.

    Args:
        run: the folder of a finished run or of its snapshot, or a model on the Hugging Face hub,
            `owner/model` or `owner/model@revision` (with the extra `hub`).

    Raises:
        DataError: there is no snapshot, or one that is damaged.
    """
    folder = locate(run)  # once: a revision on the hub may move
    info = load_info(folder)
    model = snapshot.load(folder).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return PatchEncoder(model, Symmetry(info.group, info.fibres), info.normalisation)


def _normalised(
    x_BCHW: Tensor,
    units: Sequence[str | int] | NDArray[np.generic] | None,
    normalisation: Normalisation,
) -> Pixels:
    """Normalise images (n, 3, 32, 32), n > 0, by the statistics of their units."""
    names = [0] * len(x_BCHW) if units is None else np.asarray(units, object).tolist()
    if len(names) != len(x_BCHW):
        raise ValueError(f"there are {len(names)} units for {len(x_BCHW)} images")
    if odd := [name for name in names if type(name) not in (str, int)]:
        raise ValueError(f"a unit is {odd[0]!r}; expected a name or number of each image's unit")
    if x_BCHW.dtype == torch.uint8:
        pixels = x_BCHW.permute(0, 2, 3, 1).cpu().numpy().copy()  # the caller's stay as they are
    else:
        pixels = to_pixels(x_BCHW.float())
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    codes = np.array([numbers[name] for name in names], np.int32)
    counts = np.bincount(codes)
    if counts.min() < MIN_PATCHES:
        name = list(numbers)[counts.argmin()]
        which = "" if units is None else f" of the {normalisation.unit} {name!r}"
        raise ValueError(
            f"there are {counts.min()} images{which}, but this run normalises the staining of a "
            f"{normalisation.unit} by the statistics of its images, which takes {MIN_PATCHES} or "
            "more: pass more of them in one call, and name the unit of each in `units`"
        )
    by_unit = [statistics(pixels[codes == code]) for code in range(len(counts))]
    Normaliser(codes, by_unit, normalisation.target).apply(pixels, np.arange(len(pixels)))
    return pixels


def _checked(array: NDArray[np.generic] | Tensor) -> Tensor:
    """Check images and view them as (n, 3, 32, 32)."""
    if isinstance(array, np.ndarray):
        array = np.require(array, requirements="W")  # torch warns of read-only arrays
    images = torch.as_tensor(array)
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
