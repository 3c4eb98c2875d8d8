"""Random colours for training: staining, brightness and contrast of clean patches.

Images are float (B, 3, N, N) in [0, 1]. Each patch gets its own factors, and each of its pixels
the same ones: a symmetry applied before or after gives the same patch.
"""

from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from pipeline import stain


@dataclass(frozen=True)
class JitterConfig:
    """Strength of random colour changes of training patches, of encoder input and target alike.

    The changes of the stains are those of Tellez et al. (2018), "HED" augmentation.
    """

    # haematoxylin, eosin and the residual are each scaled by a factor within 1 +- this; 0: off
    stain_scale: float = 0.0
    # and shifted by an optical density within +- this, which scales the light; 0: off
    stain_shift: float = 0.0
    # the patch is scaled by a factor within 1 +- this; 0: off
    brightness: float = 0.0
    # distances from the patch's mean intensity are scaled by a factor within 1 +- this; 0: off
    contrast: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < 1:
                raise ValueError(f"jitter.{field.name} is {value}; expected in [0, 1)")

    @property
    def stains(self) -> bool:
        return self.stain_scale > 0 or self.stain_shift > 0

    @property
    def on(self) -> bool:
        return self.stains or self.brightness > 0 or self.contrast > 0


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
