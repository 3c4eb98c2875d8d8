"""The size of a model: parameters, multiply-adds, floating-point operations. Exact, not timed."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.records import NotMeasured
from models.vae import VAE
from shards.schema import CHANNELS, PATCH

MACS_UNIT = "multiply-adds in convolutions, one image"
FLOPS_UNIT = "floating-point operations in convolutions, two per multiply-add, one image"


Counts = dict[str, str | int]  # by part or pass, and the unit


def parameters(model: VAE) -> dict[str, int]:
    """Count the numbers in the encoder, the decoder and both."""
    encoder, decoder = (
        sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)
    )
    return {"encoder": encoder, "decoder": decoder, "total": encoder + decoder}


def multiply_adds(model: VAE) -> Counts | NotMeasured:
    """Count by fvcore, which calls them flops; convolutions only."""
    try:
        from fvcore.nn import FlopCountAnalysis
    except ImportError:
        return NotMeasured("fvcore is not installed")
    analysis = FlopCountAnalysis(model, _image())
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    operations = analysis.by_module_and_operator()
    parts = {"encoder": "encoder", "decoder": "decoder", "total": ""}
    counts = {part: int(operations[module]["conv"]) for part, module in parts.items()}
    return {"unit": MACS_UNIT, **counts}


def flops(model: VAE) -> Counts:
    """Count the reconstruction from the mean, and that with the gradient of every parameter."""
    return {
        "unit": FLOPS_UNIT,
        "forward": count_flops(lambda: model(_image())),
        "forward+backward": count_flops(lambda: model(_image()).sum().backward()),
    }


def count_flops(call: Callable[[], Any]) -> int:
    """Count the FLOPs of the convolutions and matrix products in `call`, by torch."""
    mapping = {torch.ops.aten.convolution_backward: _backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


def _backward_flops(grad: Any, x: Any, weight: Any, *arguments: Any, **_: Any) -> int:
    """From shapes: the gradients of input and weight each cost what the convolution did.

    torch's own formula ignores the groups: it takes the weight of a depthwise convolution for a
    full one, and the backward pass of this model for 2.9 times what it is.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, needed = arguments
    positions = prod(x if transposed else grad)
    return 2 * positions * prod(weight[1:]) * sum(map(bool, needed[:2]))


def _image() -> Tensor:
    return torch.rand(1, CHANNELS, PATCH, PATCH)
