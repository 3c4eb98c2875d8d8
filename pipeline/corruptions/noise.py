"""Gaussian noise, independent for every pixel and channel."""

import torch
from torch import Generator, Tensor

from pipeline.config import CorruptionConfig
from pipeline.corruptions.kind import Kind, Parameters


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Add standard normal `noise_BCHW` times sigma, in units of [0, 1]."""
    return (x_BCHW + sigma_B[:, None, None, None] * noise_BCHW).clamp(0, 1)


def draw(config: CorruptionConfig, count: int, size: int, generator: Generator) -> Parameters:
    device = generator.device
    noise = torch.randn(count, 3, size, size, generator=generator, device=device)
    choices = len(config.noise_sigma)
    choice = torch.randint(choices, (count,), generator=generator, device=device)
    sigma = torch.zeros(count, device=device)
    for i, value in enumerate(config.noise_sigma):  # a table would be a blocking copy to a GPU
        sigma.masked_fill_(choice == i, value)
    return noise, sigma


def apply_at(x_BCHW: Tensor, sigma: float, generator: Generator) -> Tensor:
    noise = torch.randn(x_BCHW.shape, generator=generator)
    return add_noise(x_BCHW, noise, torch.full((len(x_BCHW),), sigma))


NOISE = Kind(
    title="Gaussian noise",
    number=1,
    draw=draw,
    apply=add_noise,
    extent=lambda config: f"noise up to {max(config.noise_sigma):g}",
    levels=(0.05, 0.1, 0.2, 0.3, 0.4),
    unit="standard deviation, of 1",
    apply_at=apply_at,
)
