"""The architectures `seed`, `refined` and `tied`: a 4x4x24 latent for 32x32 RGB patches.

`refined` is `seed` with its measured weaknesses mended: an even downsampling kernel (symmetric
lattice), no centring where it would lose the grey level, biases at the ends, standardised input.
`tied` is `refined` with its weights tied (`models.tied`): exactly equivariant under a group.
`relaxed` is `refined` initialised with the weights of `tied`: equivariant only at the start.
Shapes: B batch, C = 3 image or 24 latent channels, H = W = 32 pixels or 4 latent cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import (
    GAMMA_SILU,
    UPSAMPLE,
    BiasSiLU,
    Downsample,
    Pointwise,
    Posterior,
    ResidualBlock,
    ScaledConv2d,
)
from models.config import BLOCKS_PER_STAGE, Architecture, ModelConfig
from models.tied import tie, untie
from shards.schema import CHANNELS

Networks = tuple[nn.Module, nn.Module]  # float images to a `Posterior`; latents to float images


class VAE(nn.Module):
    """Encoder and decoder. `build` makes one with seeded weights."""

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, config: ModelConfig, channel_mean: Sequence[float] | None = None) -> None:
        super().__init__()
        self.config = config
        build_networks = ARCHITECTURES[config.architecture]
        self.encoder, self.decoder = build_networks(config, channel_mean)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Reconstruct images from the posterior mean."""
        images: Tensor = self.decoder(self.encoder(x_BCHW).mean)
        return images

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the maps of the encoder's stages; of one without them, what its head reads."""
        stages: Callable[[Tensor], list[Tensor]] | None = getattr(self.encoder, "stages", None)
        return stages(x_BCHW) if stages else [self.encoder(x_BCHW).features]


def build(config: ModelConfig, seed: int, channel_mean: Sequence[float] | None = None) -> VAE:
    """Make a new model whose weights depend on (config, seed) only.

    Args:
        channel_mean: RGB means in [0, 1] of the train split; the output of `refined` and `tied`
            starts there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VAE(config, channel_mean)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The choices in which the convolutional architectures differ."""

    input_shift: float  # the encoder reads (x - shift) * scale
    input_scale: float
    log_var_range: tuple[float, float]  # of the clamped log variance
    down_kernel: int  # side of the depthwise kernel of stride 2
    centred: bool  # weight standardisation removes the mean in both stems
    bias: bool  # in both stems and in the upsampling convolutions
    act: Callable[[int], nn.Module]  # in front of head and output, from their channels
    head: Callable[[int, int], nn.Module]  # 1x1 to mean and log variance
    output: Callable[[int], nn.Module]  # 1x1 to the three colours, from its channels


def _head(c_in: int, c_out: int) -> Pointwise:
    """Plain 1x1; the log-variance half starts scaled by 0.1."""
    head = Pointwise(c_in, c_out, GAMMA_SILU * c_in**-0.5)
    with torch.no_grad():
        head.weight[c_out // 2 :] *= 0.1
    return head


SEED = Layers(
    input_shift=0.0,
    input_scale=1.0,
    log_var_range=(-20.0, 10.0),
    down_kernel=3,
    centred=True,
    bias=False,
    act=nn.Identity,
    head=ScaledConv2d,
    output=lambda c: ScaledConv2d(c, CHANNELS),
)
REFINED = Layers(
    input_shift=0.5,
    input_scale=4.0,
    log_var_range=(-10.0, 4.0),
    down_kernel=4,
    centred=False,
    bias=True,
    act=BiasSiLU,
    head=_head,
    output=lambda c: Pointwise(c, CHANNELS, c**-0.5),
)


class Encoder(nn.Module):
    """Three stages of residual blocks, each halving the side, and a 1x1 head."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        first, second, third = config.widths
        top, down = 2 * third, layers.down_kernel
        self.log_var_range = layers.log_var_range
        self.input_shift, self.input_scale = layers.input_shift, layers.input_scale
        self.stem = ScaledConv2d(
            CHANNELS, first, 5, padding=2, centred=layers.centred, bias=layers.bias
        )
        self.body = nn.Sequential(
            nn.SiLU(),
            *_blocks(first, config.fixup, config.stage1_kernel),
            Downsample(first, down),
            *_blocks(second, config.fixup),
            Downsample(second, down),
            *_blocks(third, config.fixup),
            Downsample(third, down),
        )
        self.head_act = layers.act(top)
        self.head = layers.head(top, 2 * config.latent_channels)

    def forward(self, x_BCHW: Tensor) -> Posterior:
        """Encode float images (B, 3, 32, 32) in [0, 1]."""
        stem = self.stem((x_BCHW - self.input_shift) * self.input_scale)
        features = self.body(stem)
        mean, log_var = _full(self.head(self.head_act(features))).chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(*self.log_var_range), _full(features))

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return what each stage makes of images: maps (B, C, N, N) of sides 32, 16, 8 and 4.

        Each is taken before it is halved; the last is the map that the head reads.
        """
        maps = []
        x = self.stem((x_BCHW - self.input_shift) * self.input_scale)
        for layer in self.body:
            if isinstance(layer, Downsample):
                maps.append(_full(x))
            x = layer(x)
        return [*maps, _full(x)]


class Decoder(nn.Module):
    """Mirror of the encoder: three stages, each doubling the side, and a 1x1 output."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        first, second, third = config.widths
        top, up = 2 * third, UPSAMPLE[config.upsample]
        self.stem = ScaledConv2d(
            config.latent_channels, top, centred=layers.centred, bias=layers.bias
        )
        self.body = nn.Sequential(
            *(_blocks(top, config.fixup) if config.latent_stage else []),
            up(top, third, layers.bias),
            *_blocks(third, config.fixup),
            up(third, second, layers.bias),
            *_blocks(second, config.fixup),
            up(second, first, layers.bias),
            *_blocks(first, config.fixup),
        )
        self.output_act = layers.act(first)
        self.output = layers.output(first)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """Decode latents (B, 24, 4, 4) to float32 images (B, 3, 32, 32) in [0, 1]."""
        logits = self.output(self.output_act(self.body(self.stem(z_BCHW))))
        return torch.sigmoid(_full(logits))


def build_seed(config: ModelConfig, channel_mean: Sequence[float] | None) -> Networks:
    # its output has no bias that could start at the mean colour
    return Encoder(config, SEED), Decoder(config, SEED)


def build_refined(
    config: ModelConfig, channel_mean: Sequence[float] | None
) -> tuple[Encoder, Decoder]:
    encoder, decoder = Encoder(config, REFINED), Decoder(config, REFINED)
    if channel_mean is not None:
        mean = torch.tensor(channel_mean).clamp(0.01, 0.99)
        with torch.no_grad():
            decoder.output.get_parameter("bias").copy_(torch.logit(mean))
    return encoder, decoder


def build_tied(config: ModelConfig, channel_mean: Sequence[float] | None) -> Networks:
    encoder, decoder = build_refined(config, channel_mean)
    tie(encoder, config.group, lift=encoder.stem)
    tie(decoder, config.group, to_rgb=decoder.output)
    return encoder, decoder


def build_relaxed(config: ModelConfig, channel_mean: Sequence[float] | None) -> Networks:
    """Make a free model whose first weights are those of a tied one, expanded.

    Training can then keep the symmetry where it helps and give it up elsewhere; an equivariance
    term need not find it first. Compare relaxed group convolutions (Wang et al. 2022).
    """
    networks = build_tied(config, channel_mean)
    for network in networks:
        untie(network)
    return networks


# A new architecture: networks that know no config, a function like those above, an entry here, and
# its name in `models.config.Architecture`. A function takes the config and the RGB means of the
# train split, where the decoder may start.
ARCHITECTURES: dict[Architecture, Callable[[ModelConfig, Sequence[float] | None], Networks]] = {
    "seed": build_seed,
    "refined": build_refined,
    "tied": build_tied,
    "relaxed": build_relaxed,
}


def _full(x: Tensor) -> Tensor:
    """Raise autocast's bfloat16 to float32; the float64 of an exactness test stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(c: int, fixup: float, k: int = 3) -> list[nn.Module]:
    return [ResidualBlock(c, k, fixup) for _ in range(BLOCKS_PER_STAGE)]
