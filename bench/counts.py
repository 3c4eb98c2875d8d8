"""The size of a model: parameters, multiply-adds, floating-point operations. Exact, not timed."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.table import Record, not_measured
from models.vae import VAE
from shards.schema import CHANNELS, PATCH

MACS_UNIT = "multiply-adds in convolutions, one image"
FLOPS_UNIT = "floating-point operations in convolutions, two a multiply-add, one image"


def parameters(model: VAE) -> Record:
    encoder, decoder = _count(model.encoder), _count(model.decoder)
    return {"encoder": encoder, "decoder": decoder, "total": encoder + decoder}


def multiply_adds(model: VAE) -> Record:
    """By fvcore, which calls them flops; convolutions only."""
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        return not_measured("fvcore is not installed")
    analysis = FlopCountAnalysis(model, _image())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_module = analysis.by_module_and_operator()
    parts = {"encoder": "encoder", "decoder": "decoder", "total": ""}
    return {"unit": MACS_UNIT, **{name: int(by_module[m]["conv"]) for name, m in parts.items()}}


def flops(model: VAE) -> Record:
    """By torch: reconstruction from the mean, and that with the gradient of every parameter."""
    mapping = {torch.ops.aten.convolution_backward: _backward_flops}
    forward = FlopCounterMode(display=False)
    both = FlopCounterMode(display=False, custom_mapping=mapping)
    with forward:
        model(_image())
    with both:
        model(_image()).sum().backward()
    return {
        "unit": FLOPS_UNIT,
        "forward": forward.get_total_flops(),
        "forward+backward": both.get_total_flops(),
    }


def _backward_flops(
    grad_shape: Any, x_shape: Any, w_shape: Any, _bias: Any, _stride: Any, _padding: Any,
    _dilation: Any, transposed: bool, _output_padding: Any, _groups: Any, mask: Any,
    **_: Any,
) -> int:  # fmt: skip
    """Each of the two gradients costs what the convolution itself cost.

    torch's own formula leaves out the groups: it counts the gradient of a depthwise weight as
    that of a full one, which makes this model's backward pass 3 times too large.
    """
    positions = prod(x_shape if transposed else grad_shape)
    return 2 * positions * prod(w_shape[1:]) * (bool(mask[0]) + bool(mask[1]))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _image() -> Tensor:
    return torch.rand(1, CHANNELS, PATCH, PATCH)
