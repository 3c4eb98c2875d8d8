"""`augment`: D4 and each corruption alone and mixed, beside the whole training step.

Each is timed on a whole batch that is on the device, with new random numbers in every call, as in
training. Where the step is compiled, each is compiled too, as a graph of its own: inside the graph
of the step it cannot be timed, and costs at most as much. kornia's random modules run on the same
images with the same shares, in eager float32.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.patches import packed_folder
from bench.records import CELL, Record, Spread
from bench.settings import Settings
from bench.steps import PRESETS_TIMED, endless, make_trainer
from bench.timing import log, rounds, timed
from common.console import table
from pipeline import corruptions, d4
from pipeline.config import TRAINABLE, CorruptionConfig
from pipeline.corruptions import Parameters
from pipeline.index import open_dataset
from pipeline.pixels import to_float
from shards.schema import PATCH
from train.step import generator_for

Call = Callable[[], Any]
WARMUP = 2
ALL = "D4 and mixture"
STEP = "step: "


class Augmentation(Record, tag="augment", frozen=True):
    """An augmentation, a corruption or several, on a batch."""

    name: str
    us_per_image: Spread = msgspec.field(name="us_an_image")
    share_of: dict[str, Spread]  # of the whole step, by step


class WholeStep(Augmentation, tag="step", frozen=True):
    """The whole training step of a preset."""


def ours(images: Tensor, compiled: bool) -> dict[str, Call]:
    """Calls that draw and apply, by name; images are uint8 (B, 3, 32, 32)."""
    device, batch = images.device, len(images)
    table_GP, generator = d4.pixel_index(PATCH).to(device), generator_for(0, 0, 0, device)
    x = to_float(images)

    def prepare(call: Callable[..., Any]) -> Callable[..., Any]:
        if not compiled:
            return call
        # the memory layout of the graph of the step: alone, inductor would choose another
        layout: dict[str, str | int | bool | Callable[..., Any]] = {"layout_optimization": False}
        return torch.compile(call, fullgraph=True, dynamic=False, options=layout)

    def moved(g_B: Tensor) -> Tensor:
        return to_float(d4.act(images, g_B, table_GP))

    def both(g_B: Tensor, draws: dict[str, Parameters]) -> Tensor:
        return corruptions.corrupt(moved(g_B), CorruptionConfig(), draws)

    def elements() -> Tensor:
        return torch.randint(8, (batch,), generator=generator, device=device)

    def draws(config: CorruptionConfig) -> dict[str, Parameters]:
        return corruptions.draw(config, batch, PATCH, generator)

    def corrupted(config: CorruptionConfig) -> Call:
        def applied(parameters: dict[str, Parameters]) -> Tensor:
            return corruptions.corrupt(x, config, parameters)

        apply = prepare(applied)
        return lambda: apply(draws(config))

    whole = prepare(both)
    act = prepare(moved)
    return {
        "D4": lambda: act(elements()),
        **{kind: corrupted(CorruptionConfig().only(kind)) for kind in TRAINABLE[1:]},
        "mixture": corrupted(CorruptionConfig()),
        ALL: lambda: whole(elements(), draws(CorruptionConfig())),
    }


def kornia_calls(images: Tensor) -> dict[str, Call]:
    """Calls of kornia's random modules on the same images, by name."""
    from bench.plain_trainer import augmentation, corruption_modules, mixture

    x = to_float(images).contiguous()
    config = CorruptionConfig()
    modules: dict[str, nn.Module] = {"D4": augmentation()}
    for kind in TRAINABLE:
        modules |= corruption_modules(config.only(kind))
    modules |= {"mixture": mixture(config), ALL: nn.Sequential(augmentation(), mixture(config))}
    # on the device of the images, where kornia then draws its random numbers too
    return {f"kornia {n}": partial(module.to(x.device), x) for n, module in modules.items()}


def measure(settings: Settings, accelerator: Accelerator) -> list[Augmentation]:
    """Time the whole steps and each call on the same batch."""
    with packed_folder(settings) as root:
        dataset = open_dataset(root)
        torch.compiler.reset()
        steps: dict[str, Call] = {}
        for preset in PRESETS_TIMED:
            options = {"batch_size": settings.batch_size, "compile": settings.compiled}
            trainer = make_trainer(preset, accelerator, dataset, **options)
            with closing(endless(trainer.loader)) as batches:
                batch = next(batches)
            steps[STEP + preset] = partial(trainer.update, batch)
        images = batch.images
        calls = steps | ours(images, settings.compiled)
        calls |= kornia_calls(images) if settings.peers else {}
        log.info(f"augment: warming up {', '.join(calls)}")
        for call in [*calls.values()] * WARMUP:
            call()
        blocks = {
            name: partial(timed, call, settings.steps, accelerator.device)
            for name, call in calls.items()
        }
        seconds = rounds(blocks, settings.repeats)
    return [
        (WholeStep if name in steps else Augmentation)(
            name,
            Spread.of([1e6 * s / len(images) for s in values]),
            {step: Spread.of_ratios(values, seconds[step]) for step in steps},
        )
        for name, values in seconds.items()
    ]


def rows(records: Sequence[Augmentation], digits: int) -> list[list[str]]:
    """A header, and a row per augmentation and step."""
    steps = list(records[0].share_of)
    header = ["", "us per image", *(f"share of {name}" for name in steps)]
    shares = [[f"{r.share_of[step]:.1%}" for step in steps] for r in records]
    names = [[r.name, f"{r.us_per_image:,.{digits}f}"] for r in records]
    return [header, *(name + share for name, share in zip(names, shares, strict=True))]


def report(records: list[Augmentation], settings: Settings) -> str:
    """Show a row per augmentation and step."""
    mode = "compiled" if settings.compiled else "eager"
    title = f"microseconds per image at batch {settings.batch_size:,}, ours {mode}: {CELL}"
    return f"{title}\n{table(rows(records, digits=2))}"
