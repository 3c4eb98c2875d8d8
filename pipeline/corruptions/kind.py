"""What a kind of corruption is.

Images are float (B, 3, N, N) in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from pipeline.config import CorruptionConfig

Parameters = tuple[Tensor, ...]  # drawn for n samples: the first dimension of each is n


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way of corrupting images, which stay in [0, 1]; the defaults change nothing."""

    title: str
    """Name in figures and tables."""
    number: int
    """Part of the seeds of corrupted test images: unique, below 256, and never changed."""

    draw: Callable[[CorruptionConfig, int, int, Generator], Parameters] = (
        lambda config, count, size, generator: ()
    )
    """(config, n, size, generator) to the parameters of n images of size x size pixels."""
    apply: Callable[..., Tensor] = lambda x_BCHW, *parameters: x_BCHW
    """Corrupts images (n, 3, N, N) by the parameters that `draw` gave for them."""
    extent: Callable[[CorruptionConfig], str] = lambda config: ""
    """Describes the strongest corruption of this kind in training, for reports."""

    levels: tuple[float, ...] = ()
    """Severities 1 to 5 of the robustness curve; empty for a kind without one."""
    unit: str = ""
    """Unit of the levels."""
    apply_at: Callable[[Tensor, float, Generator], Tensor] = lambda x_BCHW, level, generator: x_BCHW
    """Corrupts images at a level, with random numbers from a generator on the host."""
