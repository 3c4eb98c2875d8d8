"""From a plain trainer to ours, rung by rung: whole steps with their loaders, images/s.

Rungs do the same work: one architecture and objective, AdamW, clipping, EMA, one batch size and
thread count. They take turns in each round, so that the ratio of two of them is of one moment.

On a GPU an eager rung waits for the device three times a step: kornia's blur and JPEG look at their
arguments, which they leave in a compiled graph.
"""

import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bench.modes.model import VARIANTS, Variant, obstacle
from bench.settings import Settings
from bench.table import CELL, Record, cell, not_measured, spread, table
from bench.timing import Say, rounds, timed
from pipeline.index import Dataset
from pipeline.loader import PREFETCH, Batch, Loader
from train import launch
from train.config import PRESETS, Config
from train.loop import Trainer

PRESETS_TIMED = ("dvae", "eq-dvae")
WARMUP = PREFETCH + 1  # steps until a loader runs at the pace of training
OURS = "ours"
PEERS = ("plain, webdataset", "plain, ImageFolder")  # also the keys of plain_data.LOADERS

Block = Callable[[], float]


def make_trainer(config: Config, accelerator: Accelerator, dataset: Dataset) -> Trainer:
    """A trainer as the entry point would make it; its run folder is never written to."""
    config = launch.resolve(config, dataset.split("train"), accelerator.device, 1)
    return Trainer(accelerator, config, dataset, dataset.root, lambda line: None)


def endless(loader: Loader) -> Generator[Batch, None, None]:
    """Batch after batch: reads ahead never run out, as they would near the end of a budget."""
    yield from loader.batches(0, sys.maxsize)


def paced(update: Callable[[Any], None], batches: Iterator[Any], steps: int,
          device: torch.device) -> float:  # fmt: skip
    """Seconds a step, loader included, once it is at its pace."""
    for _ in range(WARMUP):
        update(next(batches))
    return timed(lambda: update(next(batches)), steps, device)


def measure(
    settings: Settings, accelerator: Accelerator, dataset: Dataset, say: Say
) -> list[Record]:
    """Records of kind `rung`, one a preset, batch size and rung."""
    records = []
    with tempfile.TemporaryDirectory(prefix="bench-plain-") as folder:
        if settings.peers:
            say("ladder: writing PNG files and webdataset tars")
            _plain_data().write_out(dataset.split("train"), Path(folder), max(settings.sizes))
        for preset, size in product(PRESETS_TIMED, settings.sizes):
            one = replace(settings, batch_size=size)
            records += _rungs(preset, one, accelerator, dataset, Path(folder), say)
    return records


def _rungs(
    preset: str, settings: Settings, accelerator: Accelerator, dataset: Dataset, folder: Path,
    say: Say,
) -> list[Record]:  # fmt: skip
    torch.compiler.reset()
    device, size = accelerator.device, settings.batch_size
    config = replace(PRESETS[preset](), batch_size=size)
    why_not = {n: obstacle(variant, device, settings) for n, variant in VARIANTS.items()}
    best = [n for n in VARIANTS if why_not[n] is None][-1]
    with ExitStack() as stack:
        blocks: dict[str, Block] = {}
        if settings.peers:
            for name in PEERS:
                plain = _plain_block(name, config, settings, device, folder)
                blocks[name] = stack.enter_context(plain)
        for name, variant in VARIANTS.items():
            if why_not[name] is None:
                ours = _with(config, variant)
                trainer = make_trainer(ours, accelerator, dataset)
                blocks[name] = partial(_our_block, trainer, settings.steps)
        say(f"ladder: {preset}, batch {size}: the first steps of {', '.join(blocks)}")
        for block in blocks.values():
            block()
        seconds = rounds(blocks, settings.repeats, say)
    about = {"kind": "rung", "preset": preset, "batch_size": size}
    missing = [_missing(name, reason) for name, reason in why_not.items() if reason]
    measured = [_record(name, best, seconds, size) for name in seconds]
    return [{**about, **record} for record in [*measured, *missing]]


def _with(config: Config, variant: Variant) -> Config:
    return replace(config, precision=variant.precision, compile=variant.compiled)


def _record(name: str, best: str, seconds: dict[str, list[float]], size: int) -> Record:
    ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds[best], strict=True)]
    return {
        "rung": name,
        OURS: name == best,
        "images_per_s": spread([size / s for s in seconds[name]]),
        "ours_is_faster_by": spread(ratios),
    }


def _missing(name: str, reason: str) -> Record:
    none = not_measured(reason)
    return {"rung": name, OURS: False, "images_per_s": none, "ours_is_faster_by": none}


def _our_block(trainer: Trainer, steps: int) -> float:
    with closing(endless(trainer.loader)) as batches:
        return paced(trainer.update, batches, steps, trainer.device)


@contextmanager
def _plain_block(
    name: str, config: Config, settings: Settings, device: torch.device, folder: Path
) -> Iterator[Block]:
    """Its workers live from round to round, as they do in training."""
    from bench.plain_trainer import PlainTrainer

    trainer = PlainTrainer(config, device)
    load = _plain_data().LOADERS[name]
    with closing(load(folder, settings.batch_size, device.type == "cuda")) as batches:
        yield partial(paced, trainer.update, batches, settings.steps, device)


def _plain_data() -> Any:
    """Imported here: it needs webdataset and torchvision."""
    from bench import plain_data

    return plain_data


def report(records: list[Record]) -> str:
    """A table a preset and batch size."""
    parts = []
    for key in dict.fromkeys((r["preset"], r["batch_size"]) for r in records):
        mine = [r for r in records if (r["preset"], r["batch_size"]) == key]
        rows = [["rung", "images/s", "ours is faster by"]]
        rows += [_row(record) for record in mine]
        parts.append(f"{key[0]}: rungs at batch {key[1]:,}: {CELL}\n{table(rows)}")
    return "\n\n".join(parts)


def _row(record: Record) -> list[str]:
    name = f"{record['rung']} = {OURS}" if record[OURS] else record["rung"]
    return [name, cell(record["images_per_s"]), cell(record["ours_is_faster_by"], ".2f")]
