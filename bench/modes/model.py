"""`model`: size and speed of every architecture, without data, optimizer or transfers."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import msgspec
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench import counts
from bench.records import CELL, NotMeasured, Record, Spread
from bench.settings import VARIANTS, Settings
from bench.timing import log, rounds, timed
from common.console import table
from models.config import ModelConfig
from models.objective import Objective
from models.vae import build
from pipeline.pixels import to_float
from shards.schema import CHANNELS, PATCH
from train.config import PRESETS
from train.step import Precision, TrainStep, generator_for

ARCHITECTURES: dict[str, ModelConfig] = {
    "seed": ModelConfig(architecture="seed"),
    "refined": ModelConfig(architecture="refined"),
    "tied D4": ModelConfig(architecture="tied", group="D4"),
    "tied C4": ModelConfig(architecture="tied", group="C4"),
}
WARMUP = 2
SIZE_HEADER = ["architecture", "parameters", "encoder", "decoder", "MACs"]
SIZE_HEADER += ["FLOPs forward", "FLOPs forward+backward"]


class ModelRecord(Record, frozen=True):
    """A record of one architecture."""

    architecture: str
    model: ModelConfig  # reports find the record of a run by it


class Size(ModelRecord, tag="size", frozen=True):
    """The size of an architecture."""

    parameters: dict[str, int]  # of "encoder", "decoder", "total"
    macs: counts.Counts | NotMeasured
    flops: counts.Counts


class Speed(ModelRecord, tag="speed", frozen=True):
    """A pass of an architecture over a batch, in one variant."""

    work: str = msgspec.field(name="pass")
    variant: str
    images_per_s: Spread | NotMeasured


class Work(NamedTuple):
    """A pass over one batch; `module` is what is compiled."""

    module: nn.Module
    call: Callable[[], Any]


def _inference(module: nn.Module, images: Tensor, precision: Precision) -> Work:
    module, x = module.to(images.device), to_float(images)

    def call() -> None:
        enabled = precision == "bf16"
        with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
            module(x)

    return Work(module, call)


def encode(config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """Encode to the posterior without gradients, as for embeddings."""
    return _inference(build(config, 0).encoder, images, precision)


def reconstruct(config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """Encode and decode without gradients."""
    return _inference(build(config, 0), images, precision)


def learn(preset: str, config: ModelConfig, images: Tensor, precision: Precision) -> Work:
    """Run the step of a preset from uint8 to gradients, with random tensors drawn beforehand."""
    settings = PRESETS[preset]()
    objective = Objective(settings.objective, config.latent_channels)
    model = build(config, 0)
    step = TrainStep(
        model, objective, settings.corruption, precision, settings.augment, settings.jitter
    )
    step.to(images.device)
    draws = step.draw(len(images), generator_for(0, 0, 0, images.device))

    def call() -> None:
        step.zero_grad(set_to_none=True)
        step(images, draws)["loss"].backward()

    return Work(step, call)


PASSES: dict[str, Callable[[ModelConfig, Tensor, Precision], Work]] = {
    "encode": encode,
    "forward": reconstruct,
    "dvae forward+backward": partial(learn, "dvae"),
    "eq-dvae forward+backward": partial(learn, "eq-dvae"),
}


def measure(settings: Settings, accelerator: Accelerator) -> list[Size | Speed]:
    """Count the size of each architecture and time its passes."""
    pixels = torch.randint(256, (settings.batch_size, PATCH, PATCH, CHANNELS), dtype=torch.uint8)
    # channels-last memory, as the loader gives
    images = pixels.to(accelerator.device).permute(0, 3, 1, 2)
    records: list[Size | Speed] = []
    for name, config in ARCHITECTURES.items():
        log.info(f"model: {name}: counting")
        model = build(config, 0)
        macs, flops = counts.multiply_adds(model), counts.flops(model)
        records.append(Size(name, config, counts.parameters(model), macs, flops))
        records += _speeds(name, config, images, settings)
    return records


def _speeds(name: str, config: ModelConfig, images: Tensor, settings: Settings) -> list[Speed]:
    torch.compiler.reset()  # dynamo keeps a limited number of graphs for one piece of code
    obstacles = {v: variant.obstacle(images.device, settings) for v, variant in VARIANTS.items()}
    blocks: dict[tuple[str, str], Callable[[], float]] = {}
    for variant, title in product(VARIANTS, PASSES):
        if obstacles[variant] is None:
            log.info(f"model: {name}: {title}, {variant}: warming up")
            precision, compiled, _ = VARIANTS[variant]
            work = PASSES[title](config, images, precision)
            if compiled:
                work.module.compile(fullgraph=True, dynamic=False)
            for _ in range(WARMUP):
                work.call()
            blocks[variant, title] = partial(timed, work.call, settings.steps, images.device)
    log.info(f"model: {name}: timing {len(blocks)} passes on batches of {len(images)}")
    seconds = rounds(blocks, settings.repeats)

    def speed(variant: str, title: str) -> Spread | NotMeasured:
        if (variant, title) not in seconds:
            return NotMeasured(str(obstacles[variant]))
        return Spread.of([len(images) / s for s in seconds[variant, title]])

    return [
        Speed(name, config, title, variant, speed(variant, title))
        for variant, title in product(VARIANTS, PASSES)
    ]


def report(records: list[Size | Speed], settings: Settings) -> str:
    """Show the sizes, then a table of speeds per architecture."""
    sizes = [record for record in records if isinstance(record, Size)]
    speeds = {
        (r.architecture, r.work, r.variant): r.images_per_s for r in records if isinstance(r, Speed)
    }
    notes = f"MACs: {counts.MACS_UNIT}\nFLOPs: {counts.FLOPS_UNIT}"
    rows = [SIZE_HEADER]
    for size in sizes:
        macs = size.macs if isinstance(size.macs, NotMeasured) else size.macs["total"]
        parameters = [size.parameters[part] for part in ("total", "encoder", "decoder")]
        numbers = [*parameters, macs, size.flops["forward"], size.flops["forward+backward"]]
        rows.append([size.architecture, *(f"{number:,}" for number in numbers)])
    tables = [f"size\n{table(rows)}\n{notes}"]
    for name in (size.architecture for size in sizes):
        rows = [["pass", *VARIANTS]]
        rows += [[work, *(f"{speeds[name, work, v]:,.0f}" for v in VARIANTS)] for work in PASSES]
        title = f"{name}: images/s at batch {settings.batch_size:,}, channels-last: {CELL}"
        tables.append(f"{title}\n{table(rows)}")
    return "\n\n".join(tables)
