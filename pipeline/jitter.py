"""Random colours for training: staining, brightness and contrast of clean patches.

Images are float (B, 3, N, N) in [0, 1]. Each patch gets its own factors, and each of its pixels
the same ones: a symmetry applied before or after gives the same patch.
"""

import torch
from torch import Generator, Tensor

from pipeline import stain
from pipeline.config import JitterConfig


def draw(config: JitterConfig, batch: int, generator: Generator) -> Tensor:
    """Draw the changes (batch, 8) of a batch, uniform in their ranges, on the generator's device.

    Columns: three stain factors, three stain shifts, the factors of brightness and contrast.
    """
    uniform = torch.rand(batch, 8, generator=generator, device=generator.device) * 2 - 1
    scale, shift = 1 + config.stain_scale * uniform[:, :3], config.stain_shift * uniform[:, 3:6]
    light = 1 + config.brightness * uniform[:, 6:7], 1 + config.contrast * uniform[:, 7:8]
    return torch.cat([scale, shift, *light], 1)


def apply(x_BCHW: Tensor, config: JitterConfig, changes_B8: Tensor) -> Tensor:
    """Change the colours of a batch by what `draw` gave for it; the result is in [0, 1]."""
    changes = changes_B8[:, :, None, None]
    if config.stains:
        x_BCHW = stain.render(stain.concentrations(x_BCHW) * changes[:, :3] + changes[:, 3:6])
    if config.brightness > 0:
        x_BCHW = x_BCHW * changes[:, 6:7]
    if config.contrast > 0:
        mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
        x_BCHW = mean_B111 + (x_BCHW - mean_B111) * changes[:, 7:8]
    return x_BCHW.clamp(0, 1)
