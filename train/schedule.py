"""A run in steps, and every rate of a step as a function of images seen."""

import math
from dataclasses import dataclass

import torch

from models.blocks import decayed_parameters
from train.config import Config, OptimConfig
from train.step import TrainStep


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The budget and all intervals of a run, in steps."""

    batch: int  # images per step, of all processes
    steps: int
    log_every: int
    validate_every: int
    checkpoint_every: int

    @property
    def images(self) -> int:
        return self.steps * self.batch

    def progress(self, done: int) -> float:
        """Return the share of the budget at the middle of the step after `done` steps, in (0, 1).

        At the beginning of a step the first learning rate would be 0, at the end the last one, and
        a run of one step would train nothing.
        """
        return (done + 0.5) / self.steps


def make_schedule(config: Config) -> Schedule:
    """Round the budget up to whole batches and spread the intervals over it."""
    assert config.images is not None and config.batch_size is not None
    steps = -(-config.images // config.batch_size)

    def interval(count: int) -> int:
        return max(1, steps // max(1, count))

    return Schedule(
        batch=config.batch_size,
        steps=steps,
        log_every=interval(config.loop.logs),
        validate_every=interval(config.loop.validations),
        checkpoint_every=interval(config.loop.checkpoints),
    )


def learning_rate(optim: OptimConfig, progress: float) -> float:
    """Linear warm-up, then cosine to 0; `progress` is that of `Schedule.progress`, in [0, 1]."""
    if progress < optim.warmup:
        return optim.lr * progress / optim.warmup
    decayed = (progress - optim.warmup) / (1 - optim.warmup)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * decayed))


def ema_decay(optim: OptimConfig, images_seen: int, batch: int) -> float:
    """Decay of one step for a half-life that is a share of the images seen (EDM2)."""
    return float(0.5 ** (batch / max(optim.ema_halflife * images_seen, 1e-8)))


def make_optimizer(step: TrainStep, optim: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW: weight decay on what the layers declare, a higher rate for log scales."""
    decayed = set(decayed_parameters(step.model))
    log_scales = set(step.objective.log_scales())
    others = [p for p in step.parameters() if p not in decayed | log_scales]
    kernels = [p for p in step.parameters() if p in decayed]
    groups = [
        {"params": kernels, "weight_decay": optim.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
        {"params": [*log_scales], "weight_decay": 0.0, "scale": optim.noise_var_lr},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
