"""Where the time of a training step goes: the parts of `train.loop.Trainer`'s own calls.

The calls run as they are, with a mark of the device before and after each, so no copy of the step
is measured. On a GPU marks are events in the stream: where the host is late, the wait is in the
part that the host was in. The parts add up to the step. `copy` is how long the step waits for a
batch that is copied beside the step before; on a CPU nothing is copied.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import train.loop
import train.step
from bench.ladder import WARMUP, endless
from bench.settings import Settings
from bench.table import Record, spread
from bench.timing import Say, Spans
from pipeline import corruptions, d4
from pipeline.loader import Loader
from train.loop import Trainer

Seconds = Mapping[str, NDArray[np.float64]]  # by part, one number a step

INSIDE = {"copy": "load", "augment": "forward", "corrupt": "forward"}  # part: the part around it
STEP, REST = "step", "rest"


def measure(trainer: Trainer, loader: Loader, settings: Settings, say: Say) -> list[Record]:
    """Records of kind `split`, one a part: seconds a step, and the share of all steps."""
    say("timing the parts of a step")
    spans = Spans(trainer.device)
    with closing(endless(loader)) as batches, _watched(trainer, loader, spans):
        load = spans.around("load", lambda: next(batches))
        step = spans.around(STEP, lambda: trainer.update(load()))
        for _ in range(WARMUP + settings.repeats * settings.steps):
            step()
    return [
        {
            "kind": "split",
            "part": name,
            "seconds": spread(values.tolist()),
            "share": float(values.sum() / total.sum()),
        }
        for total, parts in [_parts(_by_step(spans))]
        for name, values in parts.items()
    ]


def _by_step(spans: Spans) -> Seconds:
    """Seconds a step, without the first steps; a part that is called twice a step is summed."""
    seconds = spans.seconds()
    steps = len(seconds[STEP])
    whole = {name: np.array(v).reshape(steps, -1).sum(1) for name, v in seconds.items()}
    return {name: values[WARMUP:] for name, values in whole.items()}


def _parts(seconds: Seconds) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The step and its parts, which add up to it: a part inside another is taken from that."""
    parts = dict(seconds)
    step = parts.pop(STEP)
    for inner, outer in INSIDE.items():
        if inner in parts:
            parts[outer] = parts[outer] - parts[inner]
    return step, {**parts, REST: step - sum(parts.values())}


@contextmanager
def _watched(trainer: Trainer, loader: Loader, spans: Spans) -> Iterator[None]:
    """Spans around the calls that an update makes; a call inside a compiled graph has none."""
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


def report(records: list[Record]) -> str:
    """The shares on one line."""
    shares = [f"{r['part']} {r['share']:.1%}" for r in records]
    return f"  a step is {'; '.join(shares)}"
