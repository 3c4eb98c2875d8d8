"""Weight tying: an ordinary network, made exactly equivariant under D4 or C4.

A feature map is fibres x |G| channels, channel = fibre * |G| + h, in the regular representation:
[rho(g) phi](h) = phi(g^-1 h), the cells of the map moved by g as well (Cohen and Welling 2016,
"Group equivariant convolutional networks"). With psi the free weights and T_h the action of
`pipeline.d4` on a square kernel:

    lift (from an image)   W[(o,h), i]      = T_h psi[o, i]
    mix                    W[(o,h), (i,h')] = T_h psi[o, i, h^-1 h']
    depthwise              W[(c,h)]         = T_h psi[c]
    to RGB                 W[o, (i,h')]     = psi[o, i]
    bias, gain             b[(o,h)]         = psi[o]

Each is one gather of psi by a precomputed table (torch's parametrizations) before an ordinary
layer: the layer, its initial scale (psi is a part of its own weights) and its multiply-adds stay
the same. Scaled weight standardisation of W has the statistics of psi[o].
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.blocks import Depthwise, ScaledConvTranspose2d
from pipeline import d4
from pipeline.config import ORDER


class Tied(nn.Module):
    """Parametrisation of a weight by psi, W = psi[table], and its inverse.

    Args:
        table: for each entry of the weight the entry of psi, flattened; every entry of psi
            occurs equally often.
        shape: shape of psi.
    """

    table: Tensor

    def __init__(self, table: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        # a kernel's entries lie channels last: the weight decides in what layout the network runs
        layout = (0, 2, 3, 1) if table.ndim == 4 else (0,)
        table = table.permute(layout)
        self.memory_shape, self.psi_shape = table.shape, torch.Size(shape)
        self.to_memory, self.from_memory = layout, (0, 3, 1, 2)[: table.ndim]
        self.register_buffer("table", table.flatten(), persistent=False)

    def forward(self, psi: Tensor) -> Tensor:
        # index_select: on CPU the backward pass of plain indexing is three times slower
        weight = psi.flatten().index_select(0, self.table)
        return weight.view(self.memory_shape).permute(self.from_memory)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take psi from the first entries of the weight that it fills; exact if W is tied."""
        copies = self.memory_shape.numel() // self.psi_shape.numel()
        first = self.table.argsort(stable=True)[::copies]
        flat = weight.permute(self.to_memory).flatten()
        return flat.index_select(0, first).view(self.psi_shape)


def tie(
    network: nn.Module,
    group: str,
    *,
    lift: nn.Module | None = None,
    to_rgb: nn.Module | None = None,
) -> None:
    """Tie every weight, gain and bias of `network`, in place.

    Args:
        group: D4 or C4.
        lift: the convolution in it that reads the image.
        to_rgb: the convolution in it that writes the image.

    Raises:
        ValueError: a layer's channels do not split into fibres of |G|.
    """
    for layer in list(network.modules()):
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.ndim == 1 and layer is not to_rgb:
                tied = vector(len(parameter), group)
            elif parameter.ndim < 4:
                continue  # alpha, and the bias of the three colours
            elif layer is to_rgb:
                tied = rgb_kernel(parameter.shape, group)
            elif isinstance(layer, ScaledConvTranspose2d):
                tied = transposed_kernel(parameter.shape, group)
            else:
                regular = layer is not lift and not isinstance(layer, Depthwise)
                tied = kernel(parameter.shape, group, regular)
            parametrize.register_parametrization(layer, name, tied)


def untie(network: nn.Module) -> None:
    """Expand tied weights in place: the network stays the same function, its weights are free."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer):
            for name in list(layer.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(layer, name)


def vector(channels: int, group: str) -> Tied:
    """Tie a vector: one number per fibre."""
    n = _fibres(channels, group)
    return Tied(torch.arange(n).repeat_interleave(ORDER[group]), (n,))


def kernel(shape: torch.Size, group: str, regular: bool) -> Tied:
    """Tie a kernel (out, in, k, k): psi is (out / |G|, in, k, k).

    `regular`: the input channels are fibres (mix); otherwise they are moved in space only (lift;
    depthwise, where there is one input channel).
    """
    table = _orbit(shape, group, regular)
    return Tied(table, (_fibres(shape[0], group), *shape[1:]))


def transposed_kernel(shape: torch.Size, group: str) -> Tied:
    """Tie the kernel of a transposed convolution, (in, out, k, k), as `kernel` does."""
    c_in, c_out, *side = shape
    table = _orbit(torch.Size((c_out, c_in, *side)), group, regular=True)
    return Tied(table.transpose(0, 1), (_fibres(c_out, group), c_in, *side))


def rgb_kernel(shape: torch.Size, group: str) -> Tied:
    """Tie a kernel to RGB, (3, in, 1, 1): psi is (3, in / |G|, 1, 1)."""
    psi = (shape[0], _fibres(shape[1], group), *shape[2:])
    table = torch.arange(torch.Size(psi).numel()).view(psi)
    return Tied(table.repeat_interleave(ORDER[group], 1), psi)


def _orbit(shape: torch.Size, group: str, regular: bool) -> Tensor:
    """Make the table of `kernel`: psi[o] moved by every h, each an output channel."""
    c_out, c_in, *side = shape
    n, order = _fibres(c_out, group), ORDER[group]
    psi = torch.arange(n * c_in * side[0] * side[1]).view(n, c_in, *side)
    if not regular:
        return torch.stack([d4.act_one(psi, h) for h in range(order)], 1).reshape(shape)
    moved = d4.channel_index(c_in, group)
    return torch.stack([d4.act_one(psi[:, moved[h]], h) for h in range(order)], 1).reshape(shape)


def _fibres(channels: int, group: str) -> int:
    if channels % ORDER[group]:
        raise ValueError(f"{channels} channels do not split into regular fibres of {group}")
    return channels // ORDER[group]
