"""The architectures `seed`, `refined` and `tied`: a 4x4x24 latent for 32x32 RGB patches.

`refined` is `seed` with its measured weaknesses mended: an even downsampling kernel (symmetric
lattice), no centring where it would lose the grey level, biases at the ends, standardised input.
`tied` is `refined` with its weights tied (`models.tied`): exactly equivariant under a group.
Shapes: B batch, C = 3 image or 24 latent channels, H = W = 32 pixels or 4 latent cells.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import GAMMA_SILU, UPSAMPLE, BiasSiLU, Downsample, ResidualBlock, ScaledConv2d
from models.tied import tie
from pipeline import d4

BLOCKS_PER_STAGE = 2


@dataclass(frozen=True)
class ModelConfig:
    architecture: Literal["seed", "refined", "tied"] = "seed"
    group: Literal["D4", "C4"] = "D4"  # that `tied` is equivariant under
    widths: tuple[int, int, int] = (16, 32, 64)  # channels at 32x32, 16x16, 8x8; 4x4 has twice 8x8
    latent_channels: int = 24
    stage1_kernel: Literal[3, 5] = 3  # depthwise kernel of the encoder's first stage
    upsample: Literal["nearest", "bilinear", "transposed"] = "nearest"
    latent_stage: bool = False  # two more decoder blocks at 4x4

    def __post_init__(self) -> None:
        first, second, third = self.widths
        if first < 1 or second != 2 * first or third != 2 * second:
            raise ValueError(f"widths are {self.widths}; expected each twice the one before")
        if self.group not in d4.ORDER:
            raise ValueError(f"group is {self.group!r}; expected one of {sorted(d4.ORDER)}")
        order = d4.ORDER[self.group]
        if self.tied and (first % order or self.latent_channels % order):
            raise ValueError(
                f"widths are {self.widths} and latent_channels {self.latent_channels}; expected "
                f"multiples of {order}, the order of {self.group}"
            )

    @property
    def tied(self) -> bool:
        return self.architecture == "tied"

    @property
    def refined(self) -> bool:
        return self.architecture in ("refined", "tied")

    @property
    def fixup(self) -> float:
        """L^(-1/(2m-2)), m = 3, L the residual branches from image to image."""
        stages = 2 * len(self.widths) + self.latent_stage
        return float((BLOCKS_PER_STAGE * stages) ** -0.25)


class Posterior(NamedTuple):
    """q(z|x), a diagonal normal, in float32, and the map that its head reads."""

    mean: Tensor  # (B, 24, 4, 4)
    log_var: Tensor  # (B, 24, 4, 4)
    features: Tensor  # (B, 128, 4, 4)


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        top, refined = 2 * third, config.refined
        self.log_var_range = (-10.0, 4.0) if refined else (-20.0, 10.0)
        self.input_shift, self.input_scale = (0.5, 4.0) if refined else (0.0, 1.0)
        self.stem = ScaledConv2d(3, first, 5, padding=2, centred=not refined, bias=refined)
        down = 4 if refined else 3
        self.body = nn.Sequential(
            nn.SiLU(),
            *_blocks(first, config.fixup, config.stage1_kernel),
            Downsample(first, down),
            *_blocks(second, config.fixup),
            Downsample(second, down),
            *_blocks(third, config.fixup),
            Downsample(third, down),
        )
        self.head_act = BiasSiLU(top) if refined else nn.Identity()
        self.head = _head(config) if refined else ScaledConv2d(top, 2 * config.latent_channels)
        if config.tied:
            tie(self, config.group, lift=self.stem)

    def forward(self, x_BCHW: Tensor) -> Posterior:
        """Float images (B, 3, 32, 32) in [0, 1] to the posterior."""
        stem = self.stem((x_BCHW - self.input_shift) * self.input_scale)
        features = self.body(stem)
        mean, log_var = _full(self.head(self.head_act(features))).chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(*self.log_var_range), _full(features))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        top, refined = 2 * third, config.refined
        up = UPSAMPLE[config.upsample]
        self.stem = ScaledConv2d(config.latent_channels, top, centred=not refined, bias=refined)
        self.body = nn.Sequential(
            *(_blocks(top, config.fixup) if config.latent_stage else []),
            up(top, third, refined),
            *_blocks(third, config.fixup),
            up(third, second, refined),
            *_blocks(second, config.fixup),
            up(second, first, refined),
            *_blocks(first, config.fixup),
        )
        self.output_act = BiasSiLU(first) if refined else nn.Identity()
        self.output = _plain(first, 3, first**-0.5) if refined else ScaledConv2d(first, 3)
        if config.tied:
            tie(self, config.group, to_rgb=self.output)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """Latents (B, 24, 4, 4) to float32 images (B, 3, 32, 32) in [0, 1]."""
        logits = self.output(self.output_act(self.body(self.stem(z_BCHW))))
        return torch.sigmoid(_full(logits))


class VAE(nn.Module):
    """Encoder and decoder. `build` makes one with seeded weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The reconstruction from the posterior mean."""
        images: Tensor = self.decoder(self.encoder(x_BCHW).mean)
        return images


def build(config: ModelConfig, seed: int, channel_mean: list[float] | None = None) -> VAE:
    """A new model whose weights depend on (config, seed) only.

    Args:
        channel_mean: RGB means in [0, 1] of the train split; the output of `refined` and `tied`
            starts there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VAE(config)
    bias = getattr(model.decoder.output, "bias", None)
    if channel_mean is not None and isinstance(bias, Tensor):
        mean = torch.tensor(channel_mean).clamp(0.01, 0.99)
        with torch.no_grad():
            bias.copy_(torch.logit(mean))
    return model


def fold(model: VAE) -> VAE:
    """The `refined` model that computes the same function as a `tied` one, its weights expanded,
    on the CPU: for export to where tying is not known."""
    folded = build(replace(model.config, architecture="refined"), 0)
    with torch.no_grad():
        for name, parameter in folded.named_parameters():
            layer, _, leaf = name.rpartition(".")
            parameter.copy_(getattr(model.get_submodule(layer), leaf))
    return folded.train(model.training)


def _full(x: Tensor) -> Tensor:
    """At least float32: autocast's bfloat16 is raised, the float64 of an exactness test stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(c: int, fixup: float, k: int = 3) -> list[nn.Module]:
    return [ResidualBlock(c, k, fixup) for _ in range(BLOCKS_PER_STAGE)]


def _head(config: ModelConfig) -> nn.Conv2d:
    """Plain 1x1 to mean and log variance; the log-variance half starts scaled by 0.1."""
    c_in = 2 * config.widths[-1]
    head = _plain(c_in, 2 * config.latent_channels, GAMMA_SILU * c_in**-0.5)
    with torch.no_grad():
        head.weight[config.latent_channels :] *= 0.1
    return head


def _plain(c_in: int, c_out: int, std: float) -> nn.Conv2d:
    conv = nn.Conv2d(c_in, c_out, 1)
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
