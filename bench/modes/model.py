"""`model`: size and speed of every architecture, without data, optimizer or transfers."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench import counts
from bench.settings import Settings
from bench.table import CELL, Record, cell, not_measured, spread, table
from bench.timing import Say, rounds, timed
from models.objective import Objective
from models.vae import ModelConfig, build
from pipeline.pixels import to_float
from shards.schema import CHANNELS, PATCH
from train import launch
from train.config import PRESETS
from train.step import Precision, TrainStep, generator_for

ARCHITECTURES: dict[str, ModelConfig] = {
    "seed": ModelConfig(architecture="seed"),
    "refined": ModelConfig(architecture="refined"),
    "tied D4": ModelConfig(architecture="tied", group="D4"),
    "tied C4": ModelConfig(architecture="tied", group="C4"),
}
WARMUP = 2


class Variant(NamedTuple):
    precision: Precision
    compiled: bool


VARIANTS = {
    "eager fp32": Variant("fp32", False),
    "eager bf16": Variant("bf16", False),
    "compiled bf16": Variant("bf16", True),
}


class Work(NamedTuple):
    """A pass over one batch; `module` is the part of it that is compiled."""

    module: nn.Module
    call: Callable[[], Any]


def _inference(module: nn.Module, images: Tensor, precision: Precision) -> Work:
    module, x = module.to(images.device), to_float(images)

    def call() -> None:
        enabled = precision == "bf16"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            module(x)

    return Work(module, call)


def _encode(config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """The posterior, no gradient: what makes embeddings."""
    return _inference(build(config, 0).encoder, images, precision)


def _reconstruct(config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """Encoder and decoder, no gradient."""
    return _inference(build(config, 0), images, precision)


def _learn(preset: str, config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """The step of a preset from uint8 to gradients, on random tensors drawn beforehand."""
    settings = PRESETS[preset]()
    objective = Objective(settings.objective, config.latent_channels)
    model = build(config, 0)
    step = TrainStep(model, objective, settings.corruption, precision, settings.augment)
    step.to(images.device)
    draws = step.draw(len(images), generator_for(0, 0, 0, images.device))

    def call() -> None:
        step.zero_grad(set_to_none=True)
        step(images, draws)["loss"].backward()

    return Work(step, call)


PASSES: dict[str, Callable[[ModelConfig, Tensor, Precision], Work]] = {
    "encode": _encode,
    "forward": _reconstruct,
    "dvae forward+backward": partial(_learn, "dvae"),
    "eq-dvae forward+backward": partial(_learn, "eq-dvae"),
}


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `size`, one an architecture, and `speed`, one a pass and variant."""
    device = accelerator.device
    pixels = torch.randint(256, (settings.batch_size, PATCH, PATCH, CHANNELS), dtype=torch.uint8)
    images = pixels.to(device).permute(0, 3, 1, 2)  # channels-last memory, as the loader gives
    records = []
    for name, config in ARCHITECTURES.items():
        say(f"model: {name}: counting")
        about = {"architecture": name, "model": asdict(config)}
        records.append({"kind": "size", **about, **_size(config)})
        speeds = _speeds(name, config, images, settings, say)
        records += [{"kind": "speed", **about, **speed} for speed in speeds]
    return records


def _size(config: ModelConfig) -> Record:
    model = build(config, 0)
    return {
        "parameters": counts.parameters(model),
        "macs": counts.multiply_adds(model),
        "flops": counts.flops(model),
    }


def _speeds(
    name: str, config: ModelConfig, images: Tensor, settings: Settings, say: Say
) -> list[Record]:
    torch.compiler.reset()  # dynamo keeps a limited number of graphs for one piece of code
    why_not = {v: obstacle(variant, images.device, settings) for v, variant in VARIANTS.items()}
    blocks: dict[tuple[str, str], Callable[[], float]] = {}
    for v, title in product(VARIANTS, PASSES):
        if why_not[v] is None:
            say(f"model: {name}: {title}, {v}: warming up")
            work = PASSES[title](config, images, VARIANTS[v].precision)
            blocks[v, title] = _ready(work, VARIANTS[v].compiled, settings.steps, images.device)
    say(f"model: {name}: timing {len(blocks)} passes on batches of {len(images)}")
    seconds = rounds(blocks, settings.repeats, say)
    return [
        {
            "pass": title,
            "variant": v,
            "images_per_s": spread([len(images) / s for s in seconds[v, title]])
            if (v, title) in seconds
            else not_measured(str(why_not[v])),
        }
        for v, title in product(VARIANTS, PASSES)
    ]


def obstacle(variant: Variant, device: torch.device, settings: Settings) -> str | None:
    """Why a variant is not measured here; None where it is."""
    if variant.precision == "bf16" and not launch.has_bf16(device):
        return "no bfloat16 in this hardware"
    if variant.compiled and not settings.compiled:
        return "needs --compiled"
    return None


def _ready(work: Work, compiled: bool, steps: int, device: torch.device) -> Callable[[], float]:
    """The work, compiled and warm, as a block that returns its seconds a call."""
    if compiled:
        work.module.compile(fullgraph=True, dynamic=False)
    for _ in range(WARMUP):
        work.call()
    return partial(timed, work.call, steps, device)


def report(records: list[Record], settings: Settings) -> str:
    """The sizes, then a table of speeds for each architecture."""
    sizes = [record for record in records if record["kind"] == "size"]
    notes = f"  MACs: {counts.MACS_UNIT}\n  FLOPs: {counts.FLOPS_UNIT}"
    parts = [f"size\n{table([SIZE_HEADER, *map(_size_row, sizes)])}\n{notes}"]
    for name in (size["architecture"] for size in sizes):
        cells = {
            (record["pass"], record["variant"]): cell(record["images_per_s"])
            for record in records
            if record["kind"] == "speed" and record["architecture"] == name
        }
        rows = [[title, *(cells[title, v] for v in VARIANTS)] for title in PASSES]
        title = f"{name}: images/s at batch {settings.batch_size:,}, channels-last: {CELL}"
        parts.append(f"{title}\n{table([['pass', *VARIANTS], *rows])}")
    return "\n\n".join(parts)


SIZE_HEADER = [
    "architecture", "parameters", "encoder", "decoder", "MACs", "FLOPs forward",
    "FLOPs forward+backward",
]  # fmt: skip


def _size_row(size: Record) -> list[str]:
    parameters, macs, flops = size["parameters"], size["macs"], size["flops"]
    numbers = [parameters["total"], parameters["encoder"], parameters["decoder"],
               macs.get("total"), flops["forward"], flops["forward+backward"]]  # fmt: skip
    return [size["architecture"], *("not measured" if n is None else f"{n:,}" for n in numbers)]
