"""What a kind of corruption is, and the configuration of all kinds that training can draw.

Images are float (B, 3, N, N) in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise

from torch import Generator, Tensor


@dataclass(frozen=True)
class CorruptionConfig:
    """Shares of the kinds (normalised to 1) and the range of each.

    A field that is one number is the share of the kind of that name; the batch is cut in the order
    of the fields. A later kind adds its share here with the default 0, which leaves every run, old
    config.json and preset without it as it is.
    """

    identity: float = 1.0
    noise: float = 1.0
    blur: float = 1.0
    jpeg: float = 1.0
    noise_sigma: tuple[float, ...] = (0.05, 0.1)  # one of these per sample, in units of [0, 1]
    blur_sigma: tuple[float, float] = (0.3, 1.0)  # uniform, in pixels, 5x5 kernel
    jpeg_quality: tuple[float, float] = (10.0, 50.0)  # uniform

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
        """The same ranges with equal shares of these kinds and of no other."""
        shares = {name: float(name in kinds) for name in self.shares}
        return replace(self, **shares)  # type: ignore[arg-type]


# looked up once, since `shares` is read in the compiled step
TRAINABLE = tuple(field.name for field in fields(CorruptionConfig) if field.type is float)

Parameters = tuple[Tensor, ...]  # drawn for n samples: the first dimension of each is n


def _nothing(config: CorruptionConfig, count: int, size: int, generator: Generator) -> Parameters:
    return ()


def _unchanged(x_BCHW: Tensor, *parameters: Tensor) -> Tensor:
    return x_BCHW


def _unchanged_at(x_BCHW: Tensor, level: float, generator: Generator) -> Tensor:
    return x_BCHW


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way of corrupting images, which stay in [0, 1]; the defaults change nothing."""

    title: str
    """Name in figures and tables."""
    number: int
    """Place in the seeds of corrupted test images: unique, below 256, and never changed."""

    draw: Callable[[CorruptionConfig, int, int, Generator], Parameters] = _nothing
    """(config, n, size, generator) to the parameters of n images of size x size pixels."""
    apply: Callable[..., Tensor] = _unchanged
    """Corrupts images (n, 3, N, N) by the parameters that `draw` gave for them."""
    extent: Callable[[CorruptionConfig], str] = lambda config: ""
    """Describes how far training goes."""

    levels: tuple[float, ...] = ()
    """Severities 1 to 5 of the robustness curve; empty for a kind without one."""
    unit: str = ""
    """Unit of the levels."""
    apply_at: Callable[[Tensor, float, Generator], Tensor] = _unchanged_at
    """Corrupts images at a level, with random numbers of a generator on the host."""
