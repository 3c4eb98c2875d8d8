"""`train`: steps of `train.loop.Trainer` with its loader, against the same steps on one batch."""

import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator

from bench.settings import Settings
from bench.table import CELL, Record, cell, spread, table
from bench.timing import Say, Spans, rounds, timed
from pipeline import corrupt
from pipeline.index import Dataset, open_dataset
from pipeline.loader import PREFETCH, STORES, Batch, Loader, choose_storage
from shards.schema import DataError
from train import launch
from train.config import PRESETS
from train.loop import Trainer

PRESETS_TIMED = ("dvae", "eq-dvae")
PATCHES = 4096  # of the synthetic set
FIXED = "fixed"  # one batch that lies on the device already
WARMUP = PREFETCH + 1  # steps until the loader runs at the pace of training
REST = "clip, optimizer, EMA"

Source = Callable[[], Generator[Batch, None, None]]


def measure(settings: Settings, accelerator: Accelerator, say: Say) -> list[Record]:
    """Records of kind `speed`, one a preset and source, and `split`, one a preset and part."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(settings.data) if settings.data else _synthetic(Path(folder), say)
        dataset = open_dataset(root)
        records = []
        for preset in PRESETS_TIMED:
            say(f"train: {preset}: making the trainer")
            trainer = make_trainer(preset, settings, accelerator, dataset, Path(folder))
            about = {
                "preset": preset,
                "architecture": trainer.config.model.architecture,
                "precision": trainer.config.precision,
                "compiled": trainer.config.compile,
            }
            found = sources(trainer)
            timings = _speeds(trainer, found, settings, say)
            timings += _split(trainer, found[FIXED], settings, say)
            records += [{**about, **record} for record in timings]
    return records


def make_trainer(
    preset: str, settings: Settings, accelerator: Accelerator, dataset: Dataset, run: Path
) -> Trainer:
    """The trainer of a preset as the entry point would make it; `run` stays empty."""
    torch.compiler.reset()
    config = replace(
        PRESETS[preset](),
        batch_size=settings.batch_size,
        compile=settings.compiled,
        storage="stream",
    )
    config = launch.resolve(config, dataset.split("train"), accelerator.device, 1)
    return Trainer(accelerator, config, dataset, run, lambda line: None)


def sources(trainer: Trainer) -> dict[str, Source]:
    """Where batches come from: one fixed batch, and every storage that the split fits in."""
    device, split = trainer.device, trainer.split
    with closing(_endless(trainer.loader)) as batches:
        first = next(batches)
    dense = first.images.contiguous(memory_format=torch.channels_last)
    fixed = first._replace(images=dense)
    found: dict[str, Source] = {FIXED: partial(_again, fixed)}
    fits = {"stream", choose_storage(split, torch.device("cpu")), choose_storage(split, device)}
    for storage in sorted(fits, key=list(STORES).index):
        loader = Loader(split, trainer.plan.batch, trainer.config.seed, device, storage)
        found[storage] = partial(_endless, loader)
    return found


def _endless(loader: Loader) -> Generator[Batch, None, None]:
    """Batch after batch: reads ahead never run out, as they would near the end of a budget."""
    yield from loader.batches(0, sys.maxsize)


def _again(batch: Batch) -> Generator[Batch, None, None]:
    while True:
        yield batch


def _speeds(
    trainer: Trainer, found: dict[str, Source], settings: Settings, say: Say
) -> list[Record]:
    say(f"train: {'compiling the step' if trainer.config.compile else 'the first step'}")
    trainer.update(next(found[FIXED]()))
    say(f"train: timing {', '.join(found)}: {settings.steps} steps each in a round")
    blocks = {name: partial(_block, trainer, found[name], settings.steps) for name in found}
    seconds = rounds(blocks, settings.repeats, say)
    return [
        {
            "kind": "speed",
            "source": name,
            "images_per_s": spread([trainer.plan.batch / s for s in values]),
            "step_s": spread(values),
            "step_over_fixed": spread(
                [s / fixed for s, fixed in zip(values, seconds[FIXED], strict=True)]
            ),
        }
        for name, values in seconds.items()
    ]


def _block(trainer: Trainer, source: Source, steps: int) -> float:
    """Seconds a step, once the loader is at its pace."""
    with closing(source()) as batches:
        for _ in range(WARMUP):
            trainer.update(next(batches))
        return timed(lambda: trainer.update(next(batches)), steps, trainer.device)


def _split(trainer: Trainer, source: Source, settings: Settings, say: Say) -> list[Record]:
    """Where the time of a step goes, part by part: the parts add up to the step."""
    say("train: timing the parts of a step")
    spans = Spans(trainer.device)
    update = spans.around("step", trainer.update)
    with closing(source()) as batches, _watched(trainer, spans):
        for _ in range(1 + settings.repeats * settings.steps):
            update(next(batches))
    parts = {name: np.array(values[1:]) for name, values in spans.seconds().items()}
    step = parts.pop("step")
    parts[REST] = step - parts["draw"] - parts["forward"] - parts["backward"]
    if "corrupt" in parts:  # it runs inside the forward pass
        parts["forward"] = parts["forward"] - parts["corrupt"]
    return [
        {
            "kind": "split",
            "part": name,
            "seconds": spread(values.tolist()),
            "share": float(values.sum() / step.sum()),
        }
        for name, values in parts.items()
    ]


@contextmanager
def _watched(trainer: Trainer, spans: Spans) -> Iterator[None]:
    """Spans around the calls that the trainer's own update makes, so that no copy is measured."""
    watched: list[tuple[Any, str]] = [
        (trainer.step, "draw"), (trainer, "forward"), (trainer.accelerator, "backward"),
    ]  # fmt: skip
    if not trainer.config.compile:  # a call inside a compiled graph cannot be watched
        watched.append((corrupt, "corrupt"))
    with ExitStack() as stack:
        for owner, name in watched:
            call = spans.around(name, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, call))
        yield


def _synthetic(folder: Path, say: Say) -> Path:
    """A packed synthetic set; imported here, since it needs more than training does.

    Raises:
        DataError: a package for making it is not installed.
    """
    try:
        from shards.pack import pack
        from shards.plan import PackOptions
        from shards.synthetic import SyntheticConfig, generate
    except ImportError as error:
        raise DataError(
            f"synthetic patches cannot be made ({error}); name a packed folder with --data"
        ) from error
    say(f"train: making {PATCHES:,} synthetic patches")
    generate(folder / "raw", SyntheticConfig(train=PATCHES, val=0, test=0))
    with redirect_stdout(sys.stderr):
        pack(folder / "raw", folder / "shards", PackOptions())
    return folder / "shards"


def report(records: list[Record], settings: Settings) -> str:
    """A table for each preset, and the shares of a step."""
    parts = []
    for preset in dict.fromkeys(record["preset"] for record in records):
        mine = [record for record in records if record["preset"] == preset]
        about, how = mine[0], "compiled" if mine[0]["compiled"] else "eager"
        title = f"{preset} ({about['architecture']}, {how} {about['precision']}): whole steps at "
        title += f"batch {settings.batch_size:,}: {CELL}"
        rows = [["batches from", "images/s", "ms a step", "step / fixed step"]]
        rows += [_row(record) for record in mine if record["kind"] == "speed"]
        shares = [f"{r['part']} {r['share']:.1%}" for r in mine if r["kind"] == "split"]
        parts.append(f"{title}\n{table(rows)}\n  a fixed step is {'; '.join(shares)}")
    return "\n\n".join(parts)


def _row(record: Record) -> list[str]:
    milliseconds = {k: v if k == "repeats" else 1000 * v for k, v in record["step_s"].items()}
    return [
        record["source"],
        cell(record["images_per_s"]),
        cell(milliseconds, ",.1f"),
        cell(record["step_over_fixed"], ".3f"),
    ]
