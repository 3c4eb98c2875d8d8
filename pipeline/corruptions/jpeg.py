"""JPEG coding and decoding with chroma subsampling 4:2:0."""

import torch
from kornia.enhance import jpeg_codec_differentiable
from torch import Generator, Tensor

from pipeline.config import CorruptionConfig
from pipeline.corruptions.kind import Kind, Parameters


def jpeg(x_BCHW: Tensor, quality_B: Tensor) -> Tensor:
    """Code and decode at quality 1 to 100, with differentiable rounding."""
    return jpeg_codec_differentiable(x_BCHW, quality_B).clamp(0, 1)


def draw(config: CorruptionConfig, count: int, size: int, generator: Generator) -> Parameters:
    low, high = config.jpeg_quality
    uniform = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * uniform,)


def apply_at(x_BCHW: Tensor, quality: float, generator: Generator) -> Tensor:
    return jpeg(x_BCHW, torch.full((len(x_BCHW),), quality))


JPEG = Kind(
    title="JPEG",
    number=3,
    draw=draw,
    apply=jpeg,
    extent=lambda config: f"JPEG down to {config.jpeg_quality[0]:g}",
    levels=(50.0, 30.0, 15.0, 8.0, 4.0),
    unit="quality",
    apply_at=apply_at,
)
