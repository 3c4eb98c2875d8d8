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


Counts = dict[str, str | int]  # by part of the model or pass; under "unit", the unit


def parameters(model: VAE) -> dict[str, int]:
    """Count the parameters of the encoder, the decoder and both."""
    encoder, decoder = (
        sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)
    )
    return {"encoder": encoder, "decoder": decoder, "total": encoder + decoder}


def multiply_adds(model: VAE) -> Counts | NotMeasured:
    """Count the multiply-adds of the convolutions, by fvcore."""
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
    """Count the FLOPs of a reconstruction from the mean, without and with its gradients."""
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
    """Count the gradients of input and weight from shapes: each costs as much as the convolution.

    torch's own formula ignores the groups of a depthwise convolution: it overestimates the backward
    pass of this model 2.9 times.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, needed = arguments
    positions = prod(x if transposed else grad)
    return 2 * positions * prod(weight[1:]) * sum(map(bool, needed[:2]))


def _image() -> Tensor:
    return torch.rand(1, CHANNELS, PATCH, PATCH)
