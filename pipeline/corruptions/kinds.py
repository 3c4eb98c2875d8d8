"""Corruptions of a clean batch, on the device, with parameters drawn from an explicit generator.

The local batch is cut into contiguous parts, one kind each, so that no image is processed twice
and shapes are static. Images are float (B, 3, 32, 32) in [0, 1] and stay there.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from kornia.enhance import jpeg_codec_differentiable
from kornia.filters import gaussian_blur2d
from torch import Generator, Tensor

KINDS = ("identity", "noise", "blur", "jpeg")
BLUR_KERNEL = (5, 5)


@dataclass(frozen=True)
class CorruptionConfig:
    """Shares of the kinds (normalised to 1) and the range of each."""

    identity: float = 1.0
    noise: float = 1.0
    blur: float = 1.0
    jpeg: float = 1.0
    noise_sigma: tuple[float, ...] = (0.05, 0.1)  # one of these a sample, in units of [0, 1]
    blur_sigma: tuple[float, float] = (0.3, 1.0)  # uniform, in pixels, 5x5 kernel
    jpeg_quality: tuple[float, float] = (10.0, 50.0)  # uniform

    def __post_init__(self) -> None:
        shares = [getattr(self, kind) for kind in KINDS]
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"corruption shares are {shares}; expected >= 0 with a sum above 0")
        if not self.noise_sigma:
            raise ValueError("corruption.noise_sigma is empty; expected at least one value")

    def counts(self, batch: int) -> list[int]:
        """Samples of each kind in a batch: cumulative shares, rounded."""
        shares = [getattr(self, kind) for kind in KINDS]
        edges = [round(share / sum(shares) * batch) for share in accumulate(shares)]
        return [end - start for start, end in zip([0, *edges], edges, strict=False)]


NONE = CorruptionConfig(noise=0.0, blur=0.0, jpeg=0.0)


class CorruptionDraws(NamedTuple):
    noise: Tensor  # (n_noise, 3, N, N) standard normal
    noise_sigma: Tensor  # (n_noise,)
    blur_sigma: Tensor  # (n_blur,)
    jpeg_quality: Tensor  # (n_jpeg,)


def draw(config: CorruptionConfig, batch: int, size: int, generator: Generator) -> CorruptionDraws:
    """Random tensors for a batch of (batch, 3, size, size), on the generator's device."""
    _, n_noise, n_blur, n_jpeg = config.counts(batch)
    on: Any = {"generator": generator, "device": generator.device}
    noise = torch.randn(n_noise, 3, size, size, **on)
    choice = torch.randint(len(config.noise_sigma), (n_noise,), **on)
    sigma = torch.zeros(n_noise, device=generator.device)
    for i, value in enumerate(config.noise_sigma):  # a table would be a blocking copy to a GPU
        sigma.masked_fill_(choice == i, value)
    return CorruptionDraws(
        noise,
        sigma,
        _uniform(config.blur_sigma, n_blur, generator),
        _uniform(config.jpeg_quality, n_jpeg, generator),
    )


def corrupt(x_BCHW: Tensor, config: CorruptionConfig, draws: CorruptionDraws) -> Tensor:
    """The corrupted batch: samples [0, n0) untouched, then noise, blur and JPEG, in [0, 1]."""
    counts = config.counts(len(x_BCHW))
    kept, noised, blurred, coded = x_BCHW.split(counts)
    parts = [kept] if counts[0] else []
    if counts[1]:
        parts.append(add_noise(noised, draws.noise, draws.noise_sigma))
    if counts[2]:
        parts.append(blur(blurred, draws.blur_sigma))
    if counts[3]:
        parts.append(jpeg(coded, draws.jpeg_quality))
    return torch.cat(parts)


def add_noise(x_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    return (x_BCHW + sigma_B[:, None, None, None] * noise_BCHW).clamp(0, 1)


def blur(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Gaussian blur, 5x5 kernel, reflected border; sigma in pixels."""
    sigma_B2 = sigma_B[:, None].expand(-1, 2)
    return gaussian_blur2d(x_BCHW, BLUR_KERNEL, sigma_B2, border_type="reflect").clamp(0, 1)


def jpeg(x_BCHW: Tensor, quality_B: Tensor) -> Tensor:
    """JPEG coding and decoding, 4:2:0, quality 1 to 100, differentiable rounding."""
    return jpeg_codec_differentiable(x_BCHW, quality_B).clamp(0, 1)


def _uniform(bounds: tuple[float, float], count: int, generator: Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)
