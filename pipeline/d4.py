"""D4 and C4: tables of the symmetry groups, and their exact actions on images and latents.

Element i = 4f + r acts as rot90^r(flip_W^f(x)), counter-clockwise; C4 is the elements 0..3.
Every action is a permutation of numbers, so it is exact in any dtype.
Shapes: B batch, C channels, N side, P = N*N pixels, G group elements.
"""

import torch
from torch import Tensor

from pipeline.config import ORDER


def product(a: int, b: int) -> int:
    """Compose two elements, b first: (f1,r1)(f2,r2) = (f1^f2, r1 + (-1)^f1 r2)."""
    f1, r1, f2, r2 = a // 4, a % 4, b // 4, b % 4
    return 4 * (f1 ^ f2) + (r1 + (-r2 if f1 else r2)) % 4


def inverse(a: int) -> int:
    """Invert an element: a rotation to the opposite one, a reflection to itself."""
    return a if a >= 4 else -a % 4


def act_one(x: Tensor, element: int) -> Tensor:
    """Apply one element to the last two dimensions of x (..., N, N)."""
    flipped = x.flip(-1) if element >= 4 else x
    return torch.rot90(flipped, element % 4, (-2, -1))


def pixel_index(n: int) -> Tensor:
    """Make the gather table (8, n*n): pixel p of g x is pixel table[g, p] of x."""
    grid = torch.arange(n * n).reshape(n, n)
    return torch.stack([act_one(grid, g).flatten() for g in range(8)])


def channel_index(channels: int, group: str) -> Tensor:
    """Make the gather table (|G|, channels) of regular fibres: [rho(g) phi](h) = phi(g^-1 h).

    Channel = fibre * |G| + h.

    Raises:
        ValueError: |G| does not divide the channels.
    """
    order = ORDER[group]
    if channels % order:
        raise ValueError(f"{channels} channels do not split into regular fibres of {group}")
    h = [[product(inverse(g), h) for h in range(order)] for g in range(order)]
    fibres = torch.arange(channels // order)[:, None] * order
    return torch.stack([(fibres + torch.tensor(row)).flatten() for row in h])


def act(x_BCNN: Tensor, g_B: Tensor, table_GP: Tensor) -> Tensor:
    """Apply element g[b] to sample b, in any dtype; `table_GP` is `pixel_index(N)`.

    Expects and returns channels-last memory, in which a pixel is one contiguous run.
    """
    b, c, n, _ = x_BCNN.shape
    x_BPC = x_BCNN.permute(0, 2, 3, 1).reshape(b, n * n, c)
    index_BPC = table_GP[g_B][:, :, None].expand(-1, -1, c)
    return x_BPC.gather(1, index_BPC).reshape(b, n, n, c).permute(0, 3, 1, 2)


def act_channels(x_BCNN: Tensor, g_B: Tensor, table_GC: Tensor) -> Tensor:
    """Permute the channels of sample b by g[b]; `table_GC` is `channel_index(C, group)`."""
    index_BC11 = table_GC[g_B][:, :, None, None]
    return x_BCNN.gather(1, index_BC11.expand_as(x_BCNN))
