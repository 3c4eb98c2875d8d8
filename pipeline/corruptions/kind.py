"""What a kind of corruption is, and the configuration of all kinds that training can draw.

Images are float (B, 3, N, N) in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

from torch import Generator, Tensor


@dataclass(frozen=True)
class CorruptionConfig:
    """Share of each kind of corruption in a batch (normalised to a sum of 1), and its range."""

    # a field of type float is the share of the kind of that name; a batch is cut in the order of
    # the fields. The share of a new kind must default to 0, so that existing runs, config.json
    # files and presets do not change

    identity: float = 1.0  # share of patches that stay uncorrupted
    noise: float = 1.0  # share of patches with Gaussian noise
    blur: float = 1.0  # share of patches with Gaussian blur
    jpeg: float = 1.0  # share of patches coded and decoded as JPEG
    # standard deviations of the noise, in units of [0, 1]: each noisy patch gets one of them
    noise_sigma: tuple[float, ...] = (0.05, 0.1)
    # lowest and highest standard deviation of the blur, in pixels; uniform per patch
    blur_sigma: tuple[float, float] = (0.3, 1.0)
    # lowest and highest JPEG quality, of 1 to 100; uniform per patch
    jpeg_quality: tuple[float, float] = (10.0, 50.0)

    def __post_init__(self) -> None:
        shares = list(self.shares.values())
        if min(shares) < 0 or sum(shares) <= 0:
            raise ValueError(f"corruption shares are {shares}; expected >= 0 with a sum above 0")
        if not self.noise_sigma:
            raise ValueError("corruption.noise_sigma is empty; expected at least one value")

    @property
    def shares(self) -> dict[str, float]:
        """Share by kind, in the order in which a batch is cut."""
        return {name: getattr(self, name) for name in TRAINABLE}

    def counts(self, batch: int) -> dict[str, int]:
        """Number of samples of each kind in a batch: cumulative shares, rounded."""
        total = sum(self.shares.values())
        edges = [0, *(round(share / total * batch) for share in accumulate(self.shares.values()))]
        return {
            name: stop - start
            for name, (start, stop) in zip(self.shares, pairwise(edges), strict=True)
        }

    def only(self, *kinds: str) -> "CorruptionConfig":
        """Copy with the same ranges, and equal shares of these kinds and of no other."""
        shares = {name: float(name in kinds) for name in self.shares}
        return replace(self, **shares)  # type: ignore[arg-type]


# looked up once, since `shares` is read in the compiled step
TRAINABLE = tuple(field.name for field in fields(CorruptionConfig) if field.type is float)

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
