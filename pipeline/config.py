"""Settings of the pipeline. Without torch: command lines are parsed from them."""

from dataclasses import dataclass, fields, replace
from itertools import accumulate, pairwise
from typing import Literal

ORDER = {"D4": 8, "C4": 4}  # elements of each symmetry group; see `pipeline.d4`

Storage = Literal["auto", "stream", "host", "device"]  # where training reads patches
Normalise = Literal["none", "site", "slide", "source"]  # by whose colours


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

NONE = CorruptionConfig().only("identity")
