"""Robustness: the probe fitted on clean patches, tested on corrupted ones, severity by severity.

Noise, blur and JPEG go beyond what models train on; brightness and staining are never trained.
What happens to a patch is drawn on the host from (kind, severity, index of the patch): every
model sees the same corrupted patches. They are rounded to 8 bits, as a file would be.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eval.measure.metrics import evaluating, psnr
from eval.measure.readouts import Pixels
from models.vae import VAE
from pipeline.corruptions import CHUNK, GRADED, corrupt_at, trained
from pipeline.pixels import to_float, to_pixels, to_tensor

PSNR_IMAGES = 512  # of the reconstruction metric: decoding every patch 25 times says no more


def corrupted(pixels: Pixels, name: str, severity: int) -> Pixels:
    """(n, 32, 32, 3) corrupted; `severity` in 1..5."""
    batches = []
    for first in range(0, len(pixels), CHUNK):
        x = to_float(to_tensor(pixels[first : first + CHUNK]))
        batches.append(to_pixels(corrupt_at(name, x, severity, first)))
    return np.concatenate(batches)


def curves(
    model: VAE | None, pixels: Pixels, score: Callable[[str, int, Pixels], float], clean: float
) -> dict[str, Any]:
    """AUROC and PSNR by kind and severity, and the areas under the curves.

    Args:
        model: what reconstructs; None measures no PSNR.
        pixels: (n, 32, 32, 3) of the test split.
        score: kind, severity and the corrupted pixels to the AUROC of the probe.
        clean: the AUROC without corruption.
    """
    found: dict[str, Any] = {}
    for name, kind in GRADED.items():
        rows = []
        for severity, level in enumerate(kind.levels, 1):
            seen = corrupted(pixels, name, severity)
            row = {"severity": severity, "level": level, "auroc": score(name, severity, seen)}
            if model is not None:
                row |= _psnr(model, pixels[:PSNR_IMAGES], seen[:PSNR_IMAGES])
            rows.append(row)
        area = float(np.mean([row["auroc"] for row in rows]))
        found[name] = {"unit": kind.unit, "trained": trained(name), "area": area, "levels": rows}
    areas = [entry["area"] for entry in found.values()]
    return {"clean": clean, "area": float(np.mean(areas)), "kinds": found}


def _psnr(model: VAE, clean: Pixels, seen: Pixels) -> dict[str, float]:
    """Mean PSNR in dB to the clean patch: of the reconstruction, and of what was seen."""
    device = next(model.parameters()).device
    output, given = [], []
    with evaluating(model):
        for first in range(0, len(clean), CHUNK):
            x, x_tilde = (
                to_float(to_tensor(part[first : first + CHUNK], device)) for part in (clean, seen)
            )
            output.append(psnr(model(x_tilde), x).double())
            given.append(psnr(x_tilde, x).double())
    return {"psnr": float(torch.cat(output).mean()), "input_psnr": float(torch.cat(given).mean())}
