"""The training loop: everything is a function of images seen."""

import copy
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.errors import DataError
from models import snapshot
from models.snapshot import mismatch
from models.vae import build
from pipeline.index import Dataset
from pipeline.loader import Batch, Loader
from train import checkpoint as state
from train.config import Config
from train.saver import Saver
from train.schedule import ema_decay, learning_rate, make_optimizer, plan
from train.step import TrainStep, generator_for
from train.task import HeldOut, held_out, make_task
from train.tracker import LOG, Progress, Sums, Tracker

Say = Callable[[str], None]

REHEARSED = 3  # steps that are timed before a run
STOP_EVERY = 16  # steps between questions whether any of several GPUs was interrupted


class NonFiniteError(Exception):
    """A loss term was NaN or infinite; the message names step, terms and samples."""


class Trainer:
    """One rank's share of a run. `run` is the run folder, `config` has every `None` resolved."""

    def __init__(
        self, accelerator: Accelerator, config: Config, dataset: Dataset, run: Path, say: Say
    ) -> None:
        self.accelerator, self.config, self.dataset, self.run = accelerator, config, dataset, run
        self.say, self.plan, self.device = say, plan(config), accelerator.device
        self.split = dataset.split("train")
        model = build(config.model, config.seed, dataset.metadata.channel_mean)
        self.task = make_task(config, dataset)
        objective = self.task.objective
        assert config.precision is not None
        self.step = TrainStep(model, objective, config.corruption, config.precision, config.augment)
        self.step.to(self.device)
        self.model = self.step.model
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.step, config.optim)
        if config.compile:
            self.step.compile(fullgraph=True, dynamic=False)
        self.forward: nn.Module = accelerator.prepare(self.step)
        self.loader = Loader(
            self.split,
            batch_size=self.plan.batch,
            seed=config.seed,
            device=self.device,
            storage=config.storage,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        names = [*objective.terms, "grad_norm", *objective.scalars()]
        self.sums = Sums(names, self.device)
        self.held_out = self._held_out()
        self.done = 0  # steps

    @property
    def images_seen(self) -> int:
        return self.done * self.plan.batch

    @property
    def images_left(self) -> int:
        return self.plan.images - self.images_seen

    def train(self, tracker: Tracker, interrupted: Callable[[], bool]) -> bool:
        """Run to the end of the budget; False when `interrupted` after saving a checkpoint.

        Raises:
            NonFiniteError: a loss term, or the gradient, was NaN or infinite.
            DataError: a checkpoint could not be written; known at the latest one step after.
        """
        progress = Progress(self.plan.images, self.images_seen, self.say)
        with Saver(self.run, self.config.loop.keep_checkpoints, self.say) as saver:
            for batch in self.loader.batches(self.images_seen, self.plan.images):
                self.update(batch)
                saver.check()
                last = self.done == self.plan.steps
                if last or self.done % self.plan.log_every == 0:
                    self._log(tracker, progress)
                if last or self.done % self.plan.validate_every == 0:
                    self._validate(tracker)
                stop = (last or self._looks_up()) and self._any_rank(interrupted())
                if last or stop or self.done % self.plan.checkpoint_every == 0:
                    self._checkpoint(tracker, saver)
                if stop and not last:
                    return False
        return True

    def seconds_a_step(self) -> float:
        """From a few steps that move no weight, forward and backward; the first one compiles."""
        first = self.loader.batches(self.images_seen, self.images_seen + 1)
        with closing(first) as batches:
            batch = next(batches)
        seconds = []
        for _ in range(1 + REHEARSED):
            began = time.perf_counter()
            self._backward(batch)["loss"].item()
            self.optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of the step at hand, their gradients added to the parameters."""
        rank = self.accelerator.process_index
        generator = generator_for(self.config.seed, self.images_seen, rank, self.device)
        draws = self.step.draw(len(batch.images), generator)
        losses: dict[str, Tensor] = self.forward(batch.images, draws, batch.labels)
        self.accelerator.backward(losses["loss"])
        return losses

    def update(self, batch: Batch) -> None:
        """One optimizer step on one global batch."""
        optim, seen = self.config.optim, self.images_seen
        rate = learning_rate(optim, self.plan.progress(self.done))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.step.parameters(), optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        decay = ema_decay(optim, self.images_seen, self.plan.batch)
        with torch.no_grad():
            ema: list[Tensor] = list(self.ema.parameters())
            model: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(ema, model, 1 - decay)
        self.sums.add({**losses, "grad_norm": norm, **self.step.objective.scalars()}, seen)
        if self.device.type == "cpu":  # no synchronisation there: stop at the very step
            self._refuse_non_finite()

    def _log(self, tracker: Tracker, progress: Progress) -> None:
        self._refuse_non_finite()
        means = self.sums.flush()
        values = torch.tensor(list(means.values()), device=self.device, dtype=torch.float64)
        means = dict(zip(means, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        if self.accelerator.is_main_process:
            means["lr"] = self.optimizer.param_groups[0]["lr"]
            tracker.write("train", self.images_seen, means)
            shown = self.step.objective.shown
            note = f"loss {means['loss']:.4f}  {shown} {means[shown]:.5f}"
            progress.update(self.images_seen, note)

    def _validate(self, tracker: Tracker) -> None:
        """On the main rank, whose model is every rank's."""
        if self.held_out is not None:
            scores, line = self.task.validate(self.model, self.ema, self.held_out)
            tracker.write("val", self.images_seen, scores)
            self.say(f"  val: {line}")
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, tracker: Tracker, saver: Saver) -> None:
        self._refuse_non_finite()
        sums = self._gathered_sums()
        if self.accelerator.is_main_process:
            optimizer = state.optimizer_tensors(self.step, self.optimizer)
            meta = {"log_bytes": tracker.bytes(), "processes": self.accelerator.num_processes}
            saver.save(self.images_seen, meta, self._state(optimizer, sums))

    def _state(self, optimizer: dict[str, Tensor], sums: dict[str, Tensor]) -> dict[str, Tensor]:
        step, ema = dict(self.step.state_dict()), dict(self.ema.state_dict())
        return state.pack_state({"step": step, "optimizer": optimizer, "ema": ema, "sums": sums})

    def restore(self, checkpoint: state.Checkpoint) -> None:
        """Continue from a checkpoint: on CPU, at an equal thread count, to the bit.

        Raises:
            DataError: it is not one of this run: other tensors, or a place outside its budget.
        """
        if problem := self._misfit(checkpoint):
            raise DataError(f"the checkpoint in {self.run} is not of this run: {problem}")
        self.step.load_state_dict(state.unpack_state(checkpoint.tensors, "step"))
        self.ema.load_state_dict(state.unpack_state(checkpoint.tensors, "ema"))
        optimizer = state.unpack_state(checkpoint.tensors, "optimizer")
        state.restore_optimizer(self.step, self.optimizer, optimizer)
        self.sums.restore(state.unpack_state(checkpoint.tensors, "sums"))
        self.done = checkpoint.images_seen // self.plan.batch

    def _misfit(self, checkpoint: state.Checkpoint) -> str | None:
        """Why a checkpoint cannot be continued by this run, if so."""
        seen, log_bytes = checkpoint.images_seen, checkpoint.meta.get("log_bytes")
        if seen % self.plan.batch or not 0 < seen <= self.plan.images:
            return f"{seen:,} images seen; expected whole batches within {self.plan.images:,}"
        if type(log_bytes) is not int or log_bytes < 0:
            return f"log_bytes is {log_bytes!r}; expected the bytes of {LOG}"
        optimizer = state.unpack_state(checkpoint.tensors, "optimizer")
        expected = state.expected_optimizer(self.step, optimizer)
        return mismatch(checkpoint.tensors, self._state(expected, self.sums.tensors()))

    def save_snapshot(self, about: dict[str, Any]) -> None:
        objective = self.config.objective
        scalars = {name: value.item() for name, value in self.step.objective.scalars().items()}
        facts = {
            "images_seen": self.images_seen,
            "noise_var": scalars.get("noise_var"),
            "beta": objective.beta,
            "equivariance": objective.equivariance,
            "group": objective.group,
            "fibres": objective.fibres,
            "stochastic": objective.stochastic,
            "decodes": objective.task == "reconstruct",
            "dataset_hash": self.dataset.hash,
        }
        snapshot.save(self.ema, self.run / "snapshot", {**about, **facts})

    def _held_out(self) -> HeldOut | None:
        """For the rank that validates, where there is a val split."""
        split = self.dataset.splits.get("val")
        if split is None or not self.accelerator.is_main_process:
            return None
        return held_out(split, self.config.loop.validation_images, self.device)

    def _gathered_sums(self) -> dict[str, Tensor]:
        """Sums averaged over ranks, so that a resume on another number of ranks continues them."""
        totals = self.accelerator.reduce(self.sums.totals.clone(), "mean")
        return {**self.sums.tensors(), "totals": totals}

    def _looks_up(self) -> bool:
        """Whether this step asks about interruptions: several GPUs synchronise for it."""
        free = self.accelerator.num_processes == 1 or self.device.type == "cpu"
        return free or self.done % STOP_EVERY == 0

    def _any_rank(self, flag: bool) -> bool:
        """Ranks must stop at one step; without other ranks this costs nothing."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(int(flag), device=self.device), "sum") > 0)

    def _refuse_non_finite(self) -> None:
        bad = self.sums.bad()
        if bad is None:
            return
        images, terms = bad
        keys = self.split.keys(self.loader.indices(images))
        raise NonFiniteError(
            f"{', '.join(terms)} not finite in the step after {images:,} images. Its batch: "
            f"{', '.join(keys[:8])} and {max(0, len(keys) - 8)} more. The last checkpoint is from "
            "before it; try a lower --optim.lr, or --precision fp32."
        )
