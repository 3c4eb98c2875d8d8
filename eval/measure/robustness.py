"""Robustness: the probe fitted on clean patches, tested on corrupted ones, severity by severity.

Noise, blur and JPEG go beyond what models train on; brightness and staining are never trained.
What happens to a patch is drawn on the host from (kind, severity, index of the patch): every
model sees the same corrupted patches. They are rounded to 8 bits, as a file would be.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

from eval.measure.metrics import CHUNK, evaluating, psnr, to_float
from eval.measure.readouts import Pixels, to_device
from models.vae import VAE
from pipeline import stain
from pipeline.corruptions import kinds as corrupt

SEED = 20_240_502
BLUR_KERNEL = (13, 13)  # holds two standard deviations of the strongest blur
PSNR_IMAGES = 512  # of the reconstruction metric: decoding every patch 25 times says no more

Corrupt = Callable[[Tensor, float, Generator], Tensor]


@dataclass(frozen=True)
class Kind:
    trained: bool  # a milder range of it is in the default corruption
    levels: tuple[float, float, float, float, float]  # severities 1 to 5
    unit: str
    apply: Corrupt  # images (B, 3, 32, 32) in [0, 1] at a level


def _noise(x: Tensor, sigma: float, generator: Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _blur(x: Tensor, sigma: float, generator: Generator) -> Tensor:
    return gaussian_blur2d(x, BLUR_KERNEL, (sigma, sigma), border_type="reflect")


def _jpeg(x: Tensor, quality: float, generator: Generator) -> Tensor:
    return corrupt.jpeg(x, torch.full((len(x),), quality))


def _brightness(x: Tensor, change: float, generator: Generator) -> Tensor:
    return x * (1 + change * _signs(len(x), 1, generator)[:, :, None, None])


def _stain(x: Tensor, change: float, generator: Generator) -> Tensor:
    return stain.jitter(x, 1 + change * _signs(len(x), 2, generator))


def _signs(rows: int, columns: int, generator: Generator) -> Tensor:
    """+1 or -1, at random."""
    return 2.0 * torch.randint(2, (rows, columns), generator=generator) - 1


KINDS: dict[str, Kind] = {
    "noise": Kind(True, (0.05, 0.1, 0.2, 0.3, 0.4), "standard deviation, of 1", _noise),
    "blur": Kind(True, (0.5, 1.0, 1.5, 2.0, 3.0), "standard deviation in pixels", _blur),
    "jpeg": Kind(True, (50.0, 30.0, 15.0, 8.0, 4.0), "quality", _jpeg),
    "brightness": Kind(False, (0.1, 0.2, 0.3, 0.4, 0.5), "factor 1 plus or minus", _brightness),
    "stain": Kind(False, (0.1, 0.2, 0.3, 0.45, 0.6), "H and E scaled by 1 +- this", _stain),
}


def corrupted(pixels: Pixels, name: str, severity: int) -> Pixels:
    """(n, 32, 32, 3) corrupted; `severity` in 1..5."""
    kind, parts = KINDS[name], []
    for first in range(0, len(pixels), CHUNK):
        entropy = [SEED, list(KINDS).index(name), severity, first]
        state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
        x = to_float(to_device(pixels[first : first + CHUNK], torch.device("cpu")))
        seen = kind.apply(x, kind.levels[severity - 1], torch.Generator().manual_seed(state))
        parts.append((seen.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


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
    for name, kind in KINDS.items():
        rows = []
        for severity, level in enumerate(kind.levels, 1):
            seen = corrupted(pixels, name, severity)
            row = {"severity": severity, "level": level, "auroc": score(name, severity, seen)}
            if model is not None:
                row |= _psnr(model, pixels[:PSNR_IMAGES], seen[:PSNR_IMAGES])
            rows.append(row)
        area = float(np.mean([row["auroc"] for row in rows]))
        found[name] = {"unit": kind.unit, "trained": kind.trained, "area": area, "levels": rows}
    areas = [entry["area"] for entry in found.values()]
    return {"clean": clean, "area": float(np.mean(areas)), "kinds": found}


def _psnr(model: VAE, clean: Pixels, seen: Pixels) -> dict[str, float]:
    """Mean PSNR in dB to the clean patch: of the reconstruction, and of what was seen."""
    device = next(model.parameters()).device
    output, given = [], []
    with evaluating(model):
        for first in range(0, len(clean), CHUNK):
            x, x_tilde = (
                to_float(to_device(part[first : first + CHUNK], device)) for part in (clean, seen)
            )
            output.append(psnr(model(x_tilde), x).double())
            given.append(psnr(x_tilde, x).double())
    return {"psnr": float(torch.cat(output).mean()), "input_psnr": float(torch.cat(given).mean())}
