"""Robustness: the probe of clean patches, tested on corrupted ones by kind and severity.

Noise, blur and JPEG go beyond the range of training; brightness and staining are not in training.
A corruption is drawn on the host from (kind, severity, index of the patch), so that every model
sees the same corrupted patches. They are rounded to 8 bits, as a file would be.
"""

from collections.abc import Callable

import numpy as np
import torch

from eval.measure.metrics import evaluating, psnr
from eval.results import Robustness, RobustnessCurve, SeverityScores
from models.vae import VAE
from pipeline.corruptions import CHUNK, GRADED, corrupt_at, trained
from pipeline.pixels import to_float, to_pixels, to_tensor
from shards.codec.png import Pixels

PSNR_IMAGES = 512  # enough for PSNR: every patch is decoded 25 times


def corrupted(pixels: Pixels, name: str, severity: int) -> Pixels:
    """Corrupt pixels (n, 32, 32, 3); `severity` is 1 to 5."""
    batches = []
    for first in range(0, len(pixels), CHUNK):
        x = to_float(to_tensor(pixels[first : first + CHUNK]))
        batches.append(to_pixels(corrupt_at(name, x, severity, first)))
    return np.concatenate(batches)


def curves(
    model: VAE | None, pixels: Pixels, score: Callable[[str, int, Pixels], float], clean: float
) -> Robustness:
    """Measure AUROC and PSNR by kind and severity, and the areas under the curves.

    Args:
        model: reconstructs for the PSNR; None measures no PSNR.
        pixels: (n, 32, 32, 3) of the test split.
        score: maps kind, severity and corrupted pixels to the AUROC of the probe.
        clean: AUROC without corruption.
    """
    kinds = {}
    for name, kind in GRADED.items():
        levels, aurocs = [], []
        for severity, level in enumerate(kind.levels, 1):
            corrupted_pixels = corrupted(pixels, name, severity)
            aurocs.append(score(name, severity, corrupted_pixels))
            output, corrupted_psnr = None, None
            if model is not None:
                output, corrupted_psnr = _psnr(
                    model, pixels[:PSNR_IMAGES], corrupted_pixels[:PSNR_IMAGES]
                )
            levels.append(
                SeverityScores(
                    severity=severity,
                    level=level,
                    auroc=aurocs[-1],
                    psnr=output,
                    input_psnr=corrupted_psnr,
                )
            )
        kinds[name] = RobustnessCurve(
            unit=kind.unit, trained=trained(name), area=float(np.mean(aurocs)), levels=levels
        )
    area = float(np.mean([curve.area for curve in kinds.values()]))
    return Robustness(clean=clean, area=area, kinds=kinds)


def _psnr(model: VAE, clean: Pixels, corrupted_pixels: Pixels) -> tuple[float, float]:
    """Measure the mean PSNR in dB to the clean patch of the reconstruction and of its input."""
    device = next(model.parameters()).device
    outputs, inputs = [], []
    with evaluating(model):
        for first in range(0, len(clean), CHUNK):
            x, x_tilde = (
                to_float(to_tensor(images[first : first + CHUNK], device))
                for images in (clean, corrupted_pixels)
            )
            outputs.append(psnr(model(x_tilde), x).double())
            inputs.append(psnr(x_tilde, x).double())
    return float(torch.cat(outputs).mean()), float(torch.cat(inputs).mean())
