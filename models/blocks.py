"""Layers of the norm-free pre-activation MBConv VAE, and which parameters weight decay shrinks.

Scaled weight standardisation: Brock et al. 2021, "Characterizing signal propagation to close the
performance gap in unnormalized ResNets"; Fixup factor: Zhang et al. 2019; ReZero: Bachlechner et
al. 2020. Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

GAMMA_SILU = 1.7881293  # gain that keeps unit variance through SiLU
SWS_FLOOR = 1e-4


class Posterior(NamedTuple):
    """q(z|x), a diagonal normal, in float32, and the feature map that the head reads."""

    mean: Tensor  # (B, 24, 4, 4)
    log_var: Tensor  # (B, 24, 4, 4)
    features: Tensor  # (B, 128, 4, 4)


class ScaledConv2d(nn.Module):
    """Convolution with standardised weights: W^ = g (W - mean) / sqrt(max(var * fan_in, 1e-4)).

    Mean and (biased) variance are taken per output channel; `centred=False` keeps the mean and
    divides by mean(W^2) instead, so that a constant input is not lost.
    """

    decays: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        k: int = 1,
        *,
        gain: float = 1.0,
        padding: int = 0,
        centred: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        fan_in = c_in * k * k
        self.weight = nn.Parameter(torch.randn(c_out, c_in, k, k) / fan_in**0.5)
        self.gain = nn.Parameter(torch.full((c_out,), gain))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None
        self.padding, self.centred = padding, centred

    def forward(self, x_BCHW: Tensor, scale: Tensor | None = None) -> Tensor:
        """Convolve; `scale` multiplies the output, folded into the gains at no cost."""
        gain = self.gain if scale is None else self.gain * scale
        weight = standardise(self.weight, gain, (1, 2, 3), self.centred)
        return F.conv2d(x_BCHW, weight, self.bias, padding=self.padding)


class ScaledConvTranspose2d(nn.Module):
    """Transposed 4x4 convolution, stride 2, padding 1; each output pixel sees 2x2 taps."""

    decays: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, c_in: int, c_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.fan_in = c_in * 4
        self.weight = nn.Parameter(torch.randn(c_in, c_out, 4, 4) / self.fan_in**0.5)
        self.gain = nn.Parameter(torch.ones(c_out))
        self.bias = nn.Parameter(torch.zeros(c_out)) if bias else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight = standardise(self.weight, self.gain, (0, 2, 3), True, self.fan_in)
        return F.conv_transpose2d(x_BCHW, weight, self.bias, stride=2, padding=1)


def decayed_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Collect the parameters that weight decay shrinks: those that layers name in `decays`.

    Raises:
        TypeError: a layer holds a matrix or kernel and does not declare `decays`.
    """
    decayed = []
    for layer in network.modules():
        if isinstance(layer, parametrize.ParametrizationList):
            continue  # its free weight belongs to the layer that it parametrises
        names: tuple[str, ...] | None = getattr(layer, "decays", None)
        if names is None:
            kernels = [n for n, p in layer.named_parameters(recurse=False) if p.ndim > 1]
            if kernels:
                raise TypeError(f"{type(layer).__name__} holds {kernels}: let it declare `decays`")
            continue
        for name in names:
            tied = parametrize.is_parametrized(layer, name)
            path = f"parametrizations.{name}.original" if tied else name
            decayed.append(layer.get_parameter(path))
    return decayed


def standardise(
    weight: Tensor, gain: Tensor, dims: tuple[int, ...], centred: bool, fan_in: int | None = None
) -> Tensor:
    """Scaled weight standardisation over `dims`, all but the output channel."""
    if fan_in is None:
        fan_in = weight[0].numel()
    if centred:
        weight = weight - weight.mean(dims, keepdim=True)
    power = weight.square().mean(dims, keepdim=True)
    scale = gain.view_as(power) * (power * fan_in).clamp(min=SWS_FLOOR).rsqrt()
    return weight * scale


class Depthwise(nn.Conv2d):
    """Depthwise convolution with plain weights N(0, std^2) and an optional bias of 0."""

    decays: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, c: int, k: int, std: float, *, stride: int = 1, bias: bool = False) -> None:
        padding = 1 if stride == 2 else k // 2
        super().__init__(c, c, k, stride=stride, padding=padding, groups=c, bias=bias)
        nn.init.normal_(self.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Pointwise(nn.Conv2d):
    """1x1 convolution with plain weights N(0, std^2) and a bias of 0."""

    bias: nn.Parameter
    decays: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, c_in: int, c_out: int, std: float) -> None:
        super().__init__(c_in, c_out, 1)
        nn.init.normal_(self.weight, std=std)
        nn.init.zeros_(self.bias)


class BiasSiLU(nn.Module):
    """SiLU(b + x) with one b per channel, 0 at init."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(c))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # without the cast, autocast's bfloat16 activations would be promoted to float32
        return F.silu(x_BCHW + self.bias.to(x_BCHW.dtype)[:, None, None])


class ResidualBlock(nn.Module):
    """x + alpha * PW2(SiLU(b2 + DW(PW1(SiLU(b1 + x))))), the identity at init (alpha = 0).

    Args:
        c: channels, expanded to 2c inside.
        k: side of the depthwise kernel.
        fixup: L^(-1/(2m-2)) with L residual branches and m = 3 weight layers per branch.
    """

    def __init__(self, c: int, k: int, fixup: float) -> None:
        super().__init__()
        self.act1 = BiasSiLU(c)
        self.expand = ScaledConv2d(c, 2 * c, gain=fixup * GAMMA_SILU)
        self.depthwise = Depthwise(2 * c, k, fixup / k, bias=True)  # its bias is b2
        self.project = ScaledConv2d(2 * c, c, gain=fixup * GAMMA_SILU)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.depthwise(self.expand(self.act1(x_BCHW)))
        return x_BCHW + self.project(F.silu(h), scale=self.alpha)


class Downsample(nn.Sequential):
    """Pointwise C to 2C, then depthwise stride 2; linear, no bias.

    k = 3 samples an asymmetric lattice on an even grid; k = 4 keeps the symmetry of the square:
    stride s with padding p does exactly when (N + 2p - k) mod s = 0.
    """

    def __init__(self, c: int, k: int) -> None:
        super().__init__(ScaledConv2d(c, 2 * c), Depthwise(2 * c, k, 1 / k, stride=2))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        wide = self[0](x_BCHW)
        if wide.device.type != "cpu" or wide.dtype != torch.bfloat16:
            return self[1](wide)
        # a strided depthwise convolution is 6 to 30 times slower in bfloat16 on CPU (bench/LOG.md)
        with torch.autocast("cpu", enabled=False):
            return self[1](wide.float()).to(wide.dtype)


def _interpolated(mode: str) -> Callable[[int, int, bool], nn.Module]:
    def build(c_in: int, c_out: int, bias: bool) -> nn.Module:
        resize = nn.Upsample(scale_factor=2, mode=mode)
        return nn.Sequential(resize, ScaledConv2d(c_in, c_out, 3, padding=1, bias=bias))

    return build


UPSAMPLE: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "nearest": _interpolated("nearest"),
    "bilinear": _interpolated("bilinear"),
    "transposed": lambda c_in, c_out, bias: ScaledConvTranspose2d(c_in, c_out, bias=bias),
}
