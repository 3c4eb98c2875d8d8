"""The composed configuration of a run, and the named presets.

Each setting lives in the dataclass of the part that it configures; a preset is a function that
returns a changed base. A setting of None is chosen for the device and the data, and recorded.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from common.records import convert
from models.config import ModelConfig, ObjectiveConfig
from pipeline.config import NONE, ORDER, CorruptionConfig, JitterConfig, Normalise, Storage


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its cosine schedule after a linear warm-up, clipping, and the weight average."""

    lr: float = 4e-3  # peak learning rate
    warmup: float = 0.02  # length of the linear warm-up, as a share of the images
    betas: tuple[float, float] = (0.9, 0.99)  # decay of AdamW's first and second moment
    weight_decay: float = 0.01  # weight decay of AdamW, on convolution weights only
    # factor on lr for the learned noise variance, a log-scale scalar that has further to move
    noise_var_lr: float = 10.0
    clip: float = 1.0  # largest norm of the gradient over all parameters; larger ones are scaled
    ema_halflife: float = 0.05  # half-life of the weight average, as a share of the images seen

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"optim.warmup is {self.warmup}; expected in [0, 1)")


@dataclass(frozen=True)
class LoopConfig:
    """How often a run logs, validates and saves, as counts over the whole run."""

    logs: int = 100  # number of lines of training metrics in metrics.jsonl, evenly spaced
    validations: int = 10  # number of validations on the val split
    checkpoints: int = 10  # number of checkpoints that are written
    keep_checkpoints: int = 2  # number of checkpoints that stay on disk, the newest
    validation_images: int = 512  # number of patches of val that each validation uses

    def __post_init__(self) -> None:
        for name in ("keep_checkpoints", "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Config:
    """All that determines a run's result, together with the data set."""

    # seed of the initial weights, the order of the patches, augmentation, corruption and sampling
    seed: int = 0
    # training budget in images seen, rounded up to whole batches. Default: 100,000 on CPU (25,600
    # on the synthetic set), 20,000,000 on a GPU
    images: int | None = None
    batch_size: int | None = None  # images per step, of all processes. Default: 64, on a GPU 2048
    # number format of the convolutions. Default: bf16 where the hardware computes in it
    precision: Literal["bf16", "fp32"] | None = None
    compile: bool | None = None  # compile the training step with torch. Default: on a GPU only
    cuda_graphs: bool = False  # on a GPU, replay the compiled step as CUDA graphs
    deterministic: bool = False  # use deterministic kernels on a GPU (those on CPU always are)
    # where training reads patches: the shards on disk (stream), host memory or device memory. auto
    # chooses by free memory
    storage: Storage = "auto"
    augment: bool = True  # augment by a random symmetry of D4 (flips and quarter turns) per patch
    # normalise the staining of every patch, in training, evaluation and embedding, from the colours
    # of its site, slide or source image to those of the train split (Reinhard, in CIELAB)
    normalise: Normalise = "none"
    jitter: JitterConfig = field(default_factory=JitterConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected 0 or more")
        channels, group = self.model.latent_channels, self.objective.group
        if self.objective.fibres == "regular" and channels % ORDER[group]:
            raise ValueError(f"{channels} channels do not split into regular fibres of {group}")
        codes = (self.objective.group, self.objective.fibres)
        if self.model.fibred and codes != (self.model.group, "regular"):
            raise ValueError(
                f"objective.group and fibres are {codes}, but the codes of a "
                f"{self.model.architecture} model move as regular fibres of {self.model.group}: "
                f"set --objective.group {self.model.group} --objective.fibres regular"
            )


LAMBDA = 0.3
RELATIVE_LAMBDA = 4.0  # equivariance error 0.1 at a cost of 0.5 dB (train/LOG.md)


def vae() -> Config:
    """The plain VAE: the encoder sees the clean image."""
    return Config(corruption=NONE)


def ae() -> Config:
    """An autoencoder: the mean is decoded and there is no KL."""
    return replace(vae(), objective=ObjectiveConfig(beta=0.0, stochastic=False))


def dvae() -> Config:
    """The denoising VAE: the encoder sees a corrupted image, the target is clean."""
    return Config()


def eq_dvae() -> Config:
    """DVAE with the equivariance term under D4."""
    return Config(objective=ObjectiveConfig(equivariance=LAMBDA))


def eq_dvae_c4() -> Config:
    """DVAE with the equivariance term under C4, the quarter turns."""
    return Config(objective=ObjectiveConfig(equivariance=LAMBDA, group="C4"))


def eq_dvae_refined() -> Config:
    """EQ-DVAE on the `refined` architecture."""
    return replace(eq_dvae(), model=ModelConfig(architecture="refined"))


def eq_dvae_relaxed() -> Config:
    """EQ-DVAE that is equivariant: begun at tied weights, held there by the relative term."""
    return Config(
        model=ModelConfig(architecture="relaxed"),
        objective=ObjectiveConfig(equivariance=RELATIVE_LAMBDA, form="relative", fibres="regular"),
    )


def d4_dvae() -> Config:
    """DVAE on the architecture that is exactly equivariant under D4 by weight tying."""
    return _tied("D4")


def c4_dvae() -> Config:
    """The same under C4, the quarter turns."""
    return _tied("C4")


def _tied(group: Literal["D4", "C4"]) -> Config:
    # no equivariance term: group and fibres say how the codes move, for evaluation
    return Config(
        model=ModelConfig(architecture="tied", group=group),
        objective=ObjectiveConfig(group=group, fibres="regular"),
    )


def supervised() -> Config:
    """The ceiling: the encoder of `dvae` trained on the labels, its decoder not at all."""
    return Config(objective=ObjectiveConfig(task="classify", beta=0.0, stochastic=False))


PRESETS: dict[str, Callable[[], Config]] = {
    "ae": ae,
    "vae": vae,
    "dvae": dvae,
    "eq-dvae": eq_dvae,
    "eq-dvae-c4": eq_dvae_c4,
    "eq-dvae-refined": eq_dvae_refined,
    "eq-dvae-relaxed": eq_dvae_relaxed,
    "d4-dvae": d4_dvae,
    "c4-dvae": c4_dvae,
    "supervised": supervised,
}
# what is trained where no preset is named: arms whose report compares them, seeds paired
COMPARISON = ("dvae", "eq-dvae")


def as_json(config: Config) -> dict[str, object]:
    """The config as plain JSON values: tuples are lists, as they come back from a file."""
    values: dict[str, object] = json.loads(json.dumps(asdict(config)))
    return values


def from_json(raw: Mapping[str, object]) -> Config:
    """Invert `as_json`: `config.json` alone rebuilds a run.

    Raises:
        ValueError: a setting is unknown or has a value of the wrong type or range.
    """
    return convert(raw, Config)


def with_defaults(raw: dict[str, object]) -> dict[str, object]:
    """Add settings that are younger than `raw` at their defaults, under which it was made.

    A config of settings that do not exist here stays as it is, so that a comparison names them.
    """
    try:
        return as_json(from_json(raw))
    except ValueError:
        return raw
