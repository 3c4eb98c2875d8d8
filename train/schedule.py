"""The run in steps, and every rate of a step as a function of images seen."""

import math
from dataclasses import dataclass

import torch

from train.config import Config, OptimConfig
from train.step import TrainStep


@dataclass(frozen=True)
class Plan:
    """The run in steps: all intervals and the budget, settled once at the top."""

    batch: int
    steps: int
    log_every: int
    validate_every: int
    checkpoint_every: int

    @property
    def images(self) -> int:
        return self.steps * self.batch

    def progress(self, done: int) -> float:
        """The share of the budget at the middle of the step after `done` steps, in (0, 1).

        At its beginning the first step's rate would be 0, at its end the last one's, and a run
        of one step would train nothing.
        """
        return (done + 0.5) / self.steps


def plan(config: Config) -> Plan:
    """Round the budget up to whole batches and spread the intervals over it."""
    assert config.images is not None and config.batch_size is not None
    steps = -(-config.images // config.batch_size)
    every = [max(1, steps // max(1, n)) for n in
             (config.loop.logs, config.loop.validations, config.loop.checkpoints)]  # fmt: skip
    return Plan(config.batch_size, steps, *every)


def learning_rate(optim: OptimConfig, progress: float) -> float:
    """Linear warm-up, then cosine to 0; `progress` is that of `Plan.progress`, in [0, 1]."""
    if progress < optim.warmup:
        return optim.lr * progress / optim.warmup
    rest = (progress - optim.warmup) / (1 - optim.warmup)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * rest))


def ema_decay(optim: OptimConfig, images_seen: int, batch: int) -> float:
    """Decay of one step for a half-life that is a share of the images seen (EDM2)."""
    return float(0.5 ** (batch / max(optim.ema_halflife * images_seen, 1e-8)))


def make_optimizer(step: TrainStep, optim: OptimConfig) -> torch.optim.AdamW:
    """Weight decay on convolution weights only; the noise variance has a rate of its own."""
    model, objective = list(step.model.parameters()), list(step.objective.parameters())
    head = [p for p in objective if p.ndim > 0]
    groups = [
        {"params": [p for p in model if p.ndim == 4], "weight_decay": optim.weight_decay},
        {"params": [*(p for p in model if p.ndim < 4), *head], "weight_decay": 0.0},
        {"params": [p for p in objective if p.ndim == 0], "weight_decay": 0.0,
         "scale": optim.noise_var_lr},
    ]  # fmt: skip
    groups = [{"scale": 1.0, **group} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)
