"""Haematoxylin and eosin as concentrations: jitter and normalisation of batches, on the device.

Images are float (B, 3, 32, 32) in [0, 1]. Optical density is -log10(transmitted light); its
decomposition into haematoxylin, eosin and a residual is that of Ruifrok and Johnston (2001).
"""

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor

DARKEST = 1 / 255  # light below it has no finite density
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # H, E, residual (DAB)
CHROMATIC = 1e-3  # standard deviation in CIELAB below which a channel is not stretched


def concentrations(x_BCHW: Tensor) -> Tensor:
    """Separate haematoxylin, eosin and a residual in every pixel, (B, 3, H, W)."""
    density = -x_BCHW.clamp(min=DARKEST).log10()
    return torch.einsum("bchw,cs->bshw", density, _stains(x_BCHW).inverse())


def render(concentrations_BSHW: Tensor) -> Tensor:
    """Render concentrations as an image, clamped to [0, 1]: the inverse of `concentrations`."""
    density = torch.einsum("bshw,sc->bchw", concentrations_BSHW, _stains(concentrations_BSHW))
    return (10**-density).clamp(0, 1)


def jitter(x_BCHW: Tensor, scale_BS: Tensor) -> Tensor:
    """Scale haematoxylin and eosin by (B, 2) factors, as stronger or weaker staining does."""
    stains_BSHW = concentrations(x_BCHW)
    factors = torch.cat([scale_BS, torch.ones_like(scale_BS[:, :1])], 1)
    return render(stains_BSHW * factors[:, :, None, None])


def statistics(x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the mean and standard deviation (3,) of all pixels of some patches in CIELAB.

    The patches are those of a site or a source image, never one alone: a 32-pixel patch of fat
    would be coloured like a tumour.
    """
    lab = rgb_to_lab(x_BCHW).double().transpose(0, 1).flatten(1)
    return lab.mean(1).float(), lab.std(1, correction=0).float()


def normalise(
    x_BCHW: Tensor, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]
) -> Tensor:
    """Move patches from the `statistics` of their site to those of another (Reinhard 2001).

    Args:
        source: statistics (3,) of all patches, or (B, 3) of each.
    """
    (mean, deviation), (to_mean, to_deviation) = source, target
    scale = (to_deviation / deviation.clamp(min=CHROMATIC))[..., None, None]
    lab = (rgb_to_lab(x_BCHW) - mean[..., None, None]) * scale + to_mean[:, None, None]
    return lab_to_rgb(lab, clip=True)


def _stains(like: Tensor) -> Tensor:
    """Stain matrix (3 stains, 3 channels) with rows of length 1."""
    return torch.nn.functional.normalize(like.new_tensor(_STAINS), dim=1)
