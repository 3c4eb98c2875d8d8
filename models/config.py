"""Settings of the models and of their export. Without torch: command lines are parsed from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.config import ORDER
from shards.schema import PATCH

Architecture = Literal["seed", "refined", "tied", "relaxed"]  # keys of `models.vae.ARCHITECTURES`

STAGES = 3  # each halves the side
BLOCKS_PER_STAGE = 2
LATENT_SIDE = PATCH // 2**STAGES
MAX_CHANNELS = 4096
NOISE_VAR_FLOOR = 1e-4


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and size of a model."""

    # architecture of encoder and decoder: tied is exactly equivariant, relaxed only at the start
    architecture: Architecture = "seed"
    group: Literal["D4", "C4"] = "D4"  # symmetry group of tied, and of relaxed at the start
    # channels at 32x32, 16x16 and 8x8, each twice the one before; 4x4 has twice those at 8x8
    widths: tuple[int, int, int] = (16, 32, 64)
    latent_channels: int = 24  # channels of the code, at each of its 4x4 cells
    stage1_kernel: Literal[3, 5] = 3  # side of the depthwise kernels in the encoder's first stage
    # how the decoder doubles the side: interpolation (nearest, bilinear) followed by a 3x3
    # convolution, or a transposed convolution
    upsample: Literal["nearest", "bilinear", "transposed"] = "nearest"
    latent_stage: bool = False  # add two residual blocks at 4x4 to the decoder

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(
                f"architecture is {self.architecture!r}; expected one of "
                f"{sorted(get_args(Architecture))}"
            )
        first, second, third = self.widths
        if first < 1 or second != 2 * first or third != 2 * second:
            raise ValueError(f"widths are {self.widths}; expected each twice the one before")
        if third > MAX_CHANNELS or not 1 <= self.latent_channels <= MAX_CHANNELS:
            raise ValueError(
                f"widths are {self.widths} and latent_channels {self.latent_channels}; expected "
                f"1 to {MAX_CHANNELS} channels"
            )
        if self.group not in ORDER:
            raise ValueError(f"group is {self.group!r}; expected one of {sorted(ORDER)}")
        order = ORDER[self.group]
        if self.fibred and (first % order or self.latent_channels % order):
            raise ValueError(
                f"widths are {self.widths} and latent_channels {self.latent_channels}; expected "
                f"multiples of {order}, the order of {self.group}"
            )

    @property
    def equivariant(self) -> bool:
        """Whether codes are regular fibres of `group`, exactly."""
        return self.architecture == "tied"

    @property
    def fibred(self) -> bool:
        """Whether channels come in regular fibres of `group`, at least at the start."""
        return self.equivariant or self.architecture == "relaxed"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one code: channels and cells."""
        return self.latent_channels, LATENT_SIDE, LATENT_SIDE

    @property
    def fixup(self) -> float:
        """Initial scale of the L residual branches from image to image: L^(-1/(2m-2)), m = 3."""
        stages = 2 * STAGES + self.latent_stage
        return float((BLOCKS_PER_STAGE * stages) ** -0.25)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The task of a run and the weights of its losses."""

    # what is learned: to reconstruct clean patches, or to classify patches by their labels
    task: Literal["reconstruct", "classify"] = "reconstruct"
    beta: float = 1.0  # weight of the KL term
    # variance of the pixels around the reconstruction, in units of [0, 1]: one learned scalar, or
    # a constant; 0.5 is the plain squared error
    noise_var: Literal["learned"] | float = "learned"
    noise_var_init: float = 0.02  # initial value of a learned noise variance
    # decode a sample of the posterior; if not, decode its mean, without a KL term (an autoencoder)
    stochastic: bool = True
    equivariance: float = 0.0  # weight lambda of the equivariance term; 0 switches it off
    # symmetry group of the equivariance term and error: D4, or C4 (quarter turns only)
    group: Literal["D4", "C4"] = "D4"
    # what the equivariance term compares: codes (mean), codes relative to their spread (relative),
    # the map before the codes (features), or decodings of turned codes (implicit)
    form: Literal["mean", "relative", "features", "implicit"] = "mean"
    # how a symmetry acts on codes: trivial moves the 4x4 cells, regular also permutes the channels
    fibres: Literal["trivial", "regular"] = "trivial"
    ssim: float = 0.0  # weight of D (1 - SSIM), a structural term added to the loss; 0: none

    def __post_init__(self) -> None:
        for name in ("beta", "equivariance", "ssim"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; expected >= 0")
        if self.noise_var != "learned" and self.noise_var < NOISE_VAR_FLOOR:
            raise ValueError(f"objective.noise_var is {self.noise_var}; expected >= 1e-4")
        if self.noise_var_init <= NOISE_VAR_FLOOR:
            raise ValueError(f"noise_var_init is {self.noise_var_init}; expected above 1e-4")
        if self.form == "features" and self.fibres == "regular":
            raise ValueError("regular fibres are defined on the latent: use form mean or implicit")
        if self.task == "classify" and (
            self.stochastic or self.beta or self.equivariance or self.ssim
        ):
            raise ValueError(
                "objective.task classify has one term, the cross-entropy: set beta, equivariance "
                "and ssim to 0 and stochastic to False, as the preset supervised does"
            )


@dataclass(frozen=True)
class ExportOptions:
    """Choose the files to write."""

    to: tuple[Literal["torch-export", "onnx"], ...] = ("onnx",)
    """Formats: onnx, for onnxruntime and others; torch-export, for torch.export.load."""
    input: Literal["uint8", "float"] = "uint8"
    """Patches that the graph takes: uint8 in 0..255, or float (float32 in [0, 1])."""
    out: Path | None = None
    """Folder of the files; default: RUN/export."""


EXPORT_DEFAULTS = ExportOptions()
