"""Training steps to time: a trainer, endless batches, and the parts of a step.

The parts of a step are the calls of `train.loop.Trainer` itself, with a mark of the device before
and after each. On a GPU marks are events in the stream: where the device waits for the host, the
wait counts to the part that the host was in. The parts add up to the step. `copy` is the time that
a step waits for its batch, which is copied during the step before; on a CPU nothing is copied.
"""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

import train.loop
import train.step
from bench.records import Record, Spread
from bench.settings import Settings
from bench.timing import Spans, log, timed
from pipeline import corruptions, d4
from pipeline.index import Dataset
from pipeline.loader import PREFETCH, Batch, Loader
from train import launch
from train.config import PRESETS
from train.loop import Trainer

PRESETS_TIMED = ("dvae", "eq-dvae")
WARMUP = PREFETCH + 1  # steps until the queue of a loader is as full as in training

INSIDE = {"copy": "load", "augment": "forward", "corrupt": "forward"}  # part: the part it is in
STEP, REMAINDER = "step", "rest"

Seconds = NDArray[np.float64]  # one number per step
BatchSource = Callable[[], Generator[Batch, None, None]]


class TrainRecord(Record, frozen=True):
    """Common fields of measurements of training steps."""

    preset: str
    architecture: str
    precision: str | None
    compiled: bool


class StepPart(TrainRecord, tag="split", frozen=True):
    """Seconds per step of a part, and its share of all steps."""

    part: str
    seconds: Spread
    share: float


def training_of(trainer: Trainer, preset: str) -> tuple[str, str, str | None, bool]:
    """Fields of `TrainRecord`, in their order."""
    config = trainer.config
    return preset, config.model.architecture, config.precision, bool(config.compile)


def make_trainer(
    preset: str, accelerator: Accelerator, dataset: Dataset, **changes: Any
) -> Trainer:
    """Make the trainer of a changed preset as train/main.py does; nothing is written."""
    config = replace(PRESETS[preset](), **changes)
    config = launch.resolve(config, dataset.split("train"), accelerator.device, 1)
    return Trainer(accelerator, config, dataset, dataset.root)


def endless(loader: Loader) -> Generator[Batch, None, None]:
    """Yield batches without end, so that reading ahead never stops."""
    yield from loader.batches(0, sys.maxsize)


def paced(
    update: Callable[[Any], None],
    batches: Iterator[Any],
    steps: int,
    device: torch.device,
) -> float:
    """Measure the seconds per step, loader included, after warm-up."""
    for _ in range(WARMUP):
        update(next(batches))
    return timed(lambda: update(next(batches)), steps, device)


def paced_anew(trainer: Trainer, source: BatchSource, steps: int) -> float:
    """Measure the seconds per step, as `paced`, with batches of a new iterator of `source`."""
    with closing(source()) as batches:
        return paced(trainer.update, batches, steps, trainer.device)


def measure_parts(
    trainer: Trainer, loader: Loader, preset: str, settings: Settings
) -> list[StepPart]:
    """Time the parts of the steps of a trainer, which is trained by those steps."""
    log.info("timing the parts of a step")
    spans = Spans(trainer.device)
    with closing(endless(loader)) as batches, _watched(trainer, loader, spans):
        load = spans.around("load", lambda: next(batches))
        step = spans.around(STEP, lambda: trainer.update(load()))
        for _ in range(WARMUP + settings.repeats * settings.steps):
            step()
    total, seconds = step_parts(spans.seconds())
    return [
        StepPart(
            *training_of(trainer, preset),
            part=name,
            seconds=Spread.of(values.tolist()),
            share=float(values.sum() / total.sum()),
        )
        for name, values in seconds.items()
    ]


def step_parts(seconds: Mapping[str, list[float]]) -> tuple[Seconds, dict[str, Seconds]]:
    """Compute the seconds of each step after warm-up, and of its parts, which add up to it.

    Calls of one part in a step are summed; the time of a part inside another is subtracted there.
    """
    steps = len(seconds[STEP])
    parts = {
        name: np.array(values).reshape(steps, -1).sum(1)[WARMUP:]
        for name, values in seconds.items()
    }
    step = parts.pop(STEP)
    for inner, outer in INSIDE.items():
        if inner in parts:
            parts[outer] = parts[outer] - parts[inner]
    return step, {**parts, REMAINDER: step - sum(parts.values())}


@contextmanager
def _watched(trainer: Trainer, loader: Loader, spans: Spans) -> Iterator[None]:
    """Time the calls of an update; those inside a compiled graph cannot be timed."""
    watched: list[tuple[Any, str, str]] = [
        (loader, "_arrived", "copy"),
        (train.loop, "generator_for", "draw"),
        (trainer.step, "draw", "draw"),
        (trainer, "forward", "forward"),
        (trainer.accelerator, "backward", "backward"),
        (nn.utils, "clip_grad_norm_", "clip, optimizer"),
        (trainer.optimizer, "step", "clip, optimizer"),
        (torch, "_foreach_lerp_", "EMA"),
    ]
    with ExitStack() as stack:
        for owner, name, part in watched:
            call = spans.around(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, call))
        if not trainer.config.compile:
            corrupted = spans.around("corrupt", corruptions.corrupt)
            stack.enter_context(patch.object(corruptions, "corrupt", corrupted))
            # the equivariance term acts as well: only the step's own name is watched
            acting = SimpleNamespace(act=spans.around("augment", d4.act))
            stack.enter_context(patch.object(train.step, "d4", acting))
        yield


def report_parts(records: list[StepPart]) -> str:
    """Show the shares on one line."""
    return f"a step is {'; '.join(f'{r.part} {r.share:.1%}' for r in records)}"
