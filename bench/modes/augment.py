"""`augment`: D4 and each corruption alone and mixed, beside the whole training step.

Each is timed on a whole batch that lies on the device, its random numbers drawn anew in every
call, as training does. Where the step is compiled, so is each of these, as a graph of its own:
inside the step's graph there is no boundary to time at, and there it can only be cheaper. kornia's
random modules, eager float32 as they are used, run on the same images with the same shares.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from bench.data import packed
from bench.ladder import PRESETS_TIMED, endless, make_trainer
from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say, rounds, timed
from pipeline import corruptions, d4
from pipeline.corruptions import TRAINABLE, CorruptionConfig
from pipeline.index import Dataset, open_dataset
from pipeline.pixels import to_float
from shards.schema import PATCH
from train.config import PRESETS
from train.step import generator_for

Call = Callable[[], Any]
WARMUP = 2
ALL = "D4 and mixture"
STEP = "step: "


def ours(images: Tensor, compiled: bool) -> dict[str, Call]:
    """By name, a call that draws and applies; images uint8 (B, 3, 32, 32)."""
    device, batch = images.device, len(images)
    table_GP, generator = d4.pixel_index(PATCH).to(device), generator_for(0, 0, 0, device)
    x = to_float(images)
    # the memory layout as in the graph of the step: alone, inductor would choose another
    how = {"fullgraph": True, "dynamic": False, "options": {"layout_optimization": False}}
    prepare: Callable[..., Any] = partial(torch.compile, **how) if compiled else _as_it_is

    def moved(g_B: Tensor) -> Tensor:
        return to_float(d4.act(images, g_B, table_GP))

    def both(g_B: Tensor, draws: corruptions.Draws) -> Tensor:
        return corruptions.corrupt(moved(g_B), CorruptionConfig(), draws)

    def elements() -> Tensor:
        return torch.randint(8, (batch,), generator=generator, device=device)

    def draws(config: CorruptionConfig) -> corruptions.Draws:
        return corruptions.draw(config, batch, PATCH, generator)

    def corrupted(config: CorruptionConfig) -> Call:
        def applied(given: corruptions.Draws) -> Tensor:
            return corruptions.corrupt(x, config, given)

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


def _as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    return call


def kornias(images: Tensor) -> dict[str, Call]:
    """The same by kornia's random modules."""
    from bench.plain_trainer import augmentation, corruption_modules, mixture

    x = to_float(images).contiguous()
    config = CorruptionConfig()
    modules: dict[str, nn.Module] = {"D4": augmentation()}
    for kind in TRAINABLE:
        modules |= corruption_modules(config.only(kind))
    modules |= {"mixture": mixture(config), ALL: nn.Sequential(augmentation(), mixture(config))}
    # on the device of the images, where kornia then draws its random numbers too
    return {f"kornia {n}": partial(module.to(x.device), x) for n, module in modules.items()}


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `augment`, one a call, and `step`, one a preset: seconds a batch."""
    with packed(settings, say) as root:
        dataset = open_dataset(root)
        torch.compiler.reset()
        steps, images = _steps(settings, accelerator, dataset)
        calls = ours(images, settings.compiled)
        calls |= kornias(images) if settings.peers else {}
        say(f"augment: warming up {', '.join([*steps, *calls])}")
        for call in [*steps.values(), *calls.values()] * WARMUP:
            call()
        device = accelerator.device
        blocks = {
            name: partial(timed, call, settings.steps, device)
            for name, call in {**steps, **calls}.items()
        }
        seconds = rounds(blocks, settings.repeats, say)
    return [
        {
            "kind": "step" if name in steps else "augment",
            "name": name,
            "us_an_image": spread([1e6 * s / len(images) for s in values]),
            "share_of": {
                step: spread([s / whole for s, whole in zip(values, seconds[step], strict=True)])
                for step in steps
            },
        }
        for name, values in seconds.items()
    ]


def _steps(
    settings: Settings, accelerator: Accelerator, dataset: Dataset
) -> tuple[dict[str, Call], Tensor]:
    """Whole steps on one batch by preset, and the images of that batch."""
    steps: dict[str, Call] = {}
    for preset in PRESETS_TIMED:
        config = replace(
            PRESETS[preset](), batch_size=settings.batch_size, compile=settings.compiled
        )
        trainer = make_trainer(config, accelerator, dataset)
        with closing(endless(trainer.loader)) as batches:
            batch = next(batches)
        steps[STEP + preset] = partial(trainer.update, batch)
    return steps, batch.images


def report(records: list[Record], settings: Settings) -> str:
    """A table: each beside the steps."""
    steps = [r["name"] for r in records if r["kind"] == "step"]
    how = "compiled" if settings.compiled else "eager"
    title = f"microseconds an image at batch {settings.batch_size:,}, ours {how}: {CELL}"
    rows = [["", "us an image", *(f"share of {name}" for name in steps)]]
    rows += [
        [r["name"], cell(r["us_an_image"], ",.2f"),
         *(cell(r["share_of"][name], ".1%") for name in steps)]
        for r in records
    ]  # fmt: skip
    return f"{title}\n{table(rows)}"
