"""Gaussian blur with a reflected border."""

import torch
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

from pipeline.config import CorruptionConfig
from pipeline.corruptions.kind import Kind, Parameters

KERNEL = 5  # pixels, in training
KERNEL_AT_LEVELS = 13  # holds two standard deviations of the strongest level


def blur(x_BCHW: Tensor, sigma_B: Tensor, kernel: int = KERNEL) -> Tensor:
    """Blur with a square kernel; sigma in pixels, one per image or one for all."""
    sigma_B2 = sigma_B[:, None].expand(-1, 2)
    return gaussian_blur2d(x_BCHW, (kernel, kernel), sigma_B2, border_type="reflect").clamp(0, 1)


def draw(config: CorruptionConfig, count: int, size: int, generator: Generator) -> Parameters:
    low, high = config.blur_sigma
    uniform = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * uniform,)


def apply_at(x_BCHW: Tensor, sigma: float, generator: Generator) -> Tensor:
    return blur(x_BCHW, torch.tensor([sigma]), KERNEL_AT_LEVELS)


BLUR = Kind(
    title="blur",
    number=2,
    draw=draw,
    apply=blur,
    extent=lambda config: f"blur up to {config.blur_sigma[1]:g}",
    levels=(0.5, 1.0, 1.5, 2.0, 3.0),
    unit="standard deviation in pixels",
    apply_at=apply_at,
)
