"""The size of a model: parameters, multiply-adds, floating-point operations. Exact, not timed."""

from collections.abc import Callable
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
    """The reconstruction from the mean, and that with the gradient of every parameter."""
    return {
        "unit": FLOPS_UNIT,
        "forward": count_flops(lambda: model(_image())),
        "forward+backward": count_flops(lambda: model(_image()).sum().backward()),
    }


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the convolutions and matrix products in `call`, by torch."""
    mapping = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


def _backward_flops(
    grad: Any, x: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, _output_padding: Any, _groups: Any, wanted: Any, **_: Any,
) -> int:  # fmt: skip
    """From shapes: the gradients of input and weight each cost what the convolution did.

    torch's own formula ignores the groups: it takes the weight of a depthwise convolution for a
    full one, and the backward pass of this model for 2.9 times what it is.
    """
    positions = prod(x if transposed else grad)
    return 2 * positions * prod(weight[1:]) * sum(map(bool, wanted[:2]))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _image() -> Tensor:
    return torch.rand(1, CHANNELS, PATCH, PATCH)
