"""The training loop; its schedule and random numbers depend on the images seen."""

import copy
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.console import Rate, clock, log
from common.errors import DataError
from eval.run import METRICS, run_name
from models import snapshot
from models.snapshot import mismatch
from models.vae import build
from pipeline.index import Dataset
from pipeline.loader import Batch, Loader
from train import checkpoint as state
from train.config import Config
from train.schedule import ema_decay, learning_rate, make_optimizer, make_schedule
from train.step import TrainStep, generator_for
from train.task import HeldOut, held_out, make_task
from train.tracker import Sums, Tracker

TIMED_STEPS = 3  # steps timed before a run, to estimate its duration
INTERRUPT_CHECK_EVERY = 16  # steps, where several GPUs synchronise for it


class NonFiniteError(Exception):
    """A loss term was NaN or infinite; the message names step, terms and samples."""


class Trainer:
    """One rank's share of a run.

    Args:
        config: every `None` in it is resolved (`train.launch.resolve`).
        run: the run folder.
    """

    def __init__(
        self, accelerator: Accelerator, config: Config, dataset: Dataset, run: Path
    ) -> None:
        self.accelerator, self.config, self.dataset, self.run = accelerator, config, dataset, run
        self.schedule, self.device = make_schedule(config), accelerator.device
        self.split = dataset.split("train")
        model = build(config.model, config.seed, dataset.metadata.channel_mean)
        self.task = make_task(config, dataset)
        objective = self.task.objective
        assert config.precision is not None
        self.step = TrainStep(
            model, objective, config.corruption, config.precision, config.augment, config.jitter
        )
        self.step.to(self.device)
        self.model = self.step.model
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.step, config.optim)
        if config.compile:
            mode = "reduce-overhead" if config.cuda_graphs else None
            self.step.compile(fullgraph=True, dynamic=False, mode=mode)
        self.forward: nn.Module = accelerator.prepare(self.step)
        self.loader = Loader(
            self.split,
            batch_size=self.schedule.batch,
            seed=config.seed,
            device=self.device,
            storage=config.storage,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        names = [*objective.terms, "grad_norm", *objective.scalars()]
        self.sums = Sums(names, self.device)
        self.held_out: HeldOut | None = None  # without a val split, and on other ranks
        if accelerator.is_main_process and (val := dataset.splits.get("val")):
            self.held_out = held_out(val, config.loop.validation_images, self.device)
        self.done = 0  # steps

    @property
    def images_seen(self) -> int:
        return self.done * self.schedule.batch

    @property
    def images_left(self) -> int:
        return self.schedule.images - self.images_seen

    def train(self, tracker: Tracker, interrupted: Callable[[], bool]) -> bool:
        """Train to the end of the budget; False when `interrupted` after saving a checkpoint.

        Raises:
            NonFiniteError: a loss term, or the gradient, was NaN or infinite.
            DataError: a checkpoint could not be written.
        """
        rate = Rate(self.schedule.images, self.images_seen)
        for batch in self.loader.batches(self.images_seen, self.schedule.images):
            self.update(batch)
            last = self.done == self.schedule.steps
            if last or self.done % self.schedule.log_every == 0:
                self._log(tracker, rate)
            if last or self.done % self.schedule.validate_every == 0:
                self._validate(tracker)
            stop = self._stops(interrupted(), last)
            if last or stop or self.done % self.schedule.checkpoint_every == 0:
                self._checkpoint(tracker)
            if stop and not last:
                return False
        return True

    def seconds_left(self) -> float:
        """Estimate the time to the end of the budget, with validations; changes no weight."""
        left = self.schedule.steps - self.done
        seconds = self._seconds_per_step() * left
        if self.held_out is not None:
            began = time.perf_counter()
            self.task.validate(self.model, self.ema, self.held_out)
            validation = time.perf_counter() - began
            seconds += validation * (left // self.schedule.validate_every)
        return seconds

    def _seconds_per_step(self) -> float:
        """Time forward and backward passes; the first one compiles."""
        with closing(self.loader.batches(self.images_seen, self.images_seen + 1)) as batches:
            batch = next(batches)
        seconds = []
        for _ in range(1 + TIMED_STEPS):
            began = time.perf_counter()
            self._backward(batch)["loss"].item()
            self.optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the losses of the next step and add their gradients to the parameters."""
        rank = self.accelerator.process_index
        generator = generator_for(self.config.seed, self.images_seen, rank, self.device)
        draws = self.step.draw(len(batch.images), generator)
        # with CUDA graphs this overwrites the losses and gradients of the step before: both are
        # read, and the gradients released, within their own step
        torch.compiler.cudagraph_mark_step_begin()
        losses: dict[str, Tensor] = self.forward(batch.images, draws, batch.labels)
        self.accelerator.backward(losses["loss"])
        return losses

    def update(self, batch: Batch) -> None:
        """Make one optimizer step on this rank's share of a global batch."""
        optim, seen = self.config.optim, self.images_seen
        rate = learning_rate(optim, self.schedule.progress(self.done))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        losses = self._backward(batch)
        norm = nn.utils.clip_grad_norm_(self.step.parameters(), optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        decay = ema_decay(optim, self.images_seen, self.schedule.batch)
        with torch.no_grad():
            ema: list[Tensor] = list(self.ema.parameters())
            model: list[Tensor] = list(self.model.parameters())
            torch._foreach_lerp_(ema, model, 1 - decay)
        self.sums.add({**losses, "grad_norm": norm, **self.step.objective.scalars()}, seen)
        if self.device.type == "cpu":  # no synchronisation there: stop at the very step
            self._refuse_non_finite()

    def _log(self, tracker: Tracker, rate: Rate) -> None:
        self._refuse_non_finite()
        means = self.sums.flush()
        values = torch.tensor(list(means.values()), device=self.device, dtype=torch.float64)
        means = dict(zip(means, self.accelerator.reduce(values, "mean").tolist(), strict=True))
        if self.accelerator.is_main_process:
            means["lr"] = self.optimizer.param_groups[0]["lr"]
            tracker.write("train", self.images_seen, means)
        rate.add(self.images_seen - rate.done)
        if rate.due() or not self.images_left:
            shown = self.step.objective.shown
            log.info(
                f"{rate.done:>11,}/{rate.total:,} images {rate.done / rate.total:4.0%}  "
                f"{rate.per_second:,.0f} images/s  {clock(rate.seconds_left)} left  "
                f"loss {means['loss']:.4f}  {shown} {means[shown]:.5f}"
            )

    def _validate(self, tracker: Tracker) -> None:
        """Validate on the main rank, whose model is every rank's."""
        if self.held_out is not None:
            scores, line = self.task.validate(self.model, self.ema, self.held_out)
            tracker.write("val", self.images_seen, scores)
            log.info(f"  val: {line}")
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, tracker: Tracker) -> None:
        self._refuse_non_finite()
        # averaged over ranks, so that a resume on another number of ranks continues them
        totals = self.accelerator.reduce(self.sums.totals.clone(), "mean")
        sums = {**self.sums.tensors(), "totals": totals}
        if self.accelerator.is_main_process:
            optimizer = state.optimizer_tensors(self.step, self.optimizer)
            meta = {
                "log_bytes": tracker.synced_bytes(),
                "processes": self.accelerator.num_processes,
            }
            if (name := run_name(self.run)) is not None:
                meta["run"] = int(name, 16)
            tensors, keep = self._state(optimizer, sums), self.config.loop.keep_checkpoints
            state.save_checkpoint(self.run, self.images_seen, meta, tensors, keep)

    def _state(self, optimizer: dict[str, Tensor], sums: dict[str, Tensor]) -> dict[str, Tensor]:
        step, ema = dict(self.step.state_dict()), dict(self.ema.state_dict())
        return state.pack_state({"step": step, "optimizer": optimizer, "ema": ema, "sums": sums})

    def restore(self, checkpoint: state.Checkpoint) -> None:
        """Continue from a checkpoint: bit-identically on CPU at an equal thread count.

        Raises:
            DataError: it is of another run: other tensors, or images seen beyond the budget.
        """
        if problem := self._misfit(checkpoint):
            raise DataError(f"the checkpoint in {self.run} is not of this run: {problem}")
        self.step.load_state_dict(state.unpack_state(checkpoint.tensors, "step"))
        self.ema.load_state_dict(state.unpack_state(checkpoint.tensors, "ema"))
        optimizer = state.unpack_state(checkpoint.tensors, "optimizer")
        state.restore_optimizer(self.step, self.optimizer, optimizer)
        self.sums.restore(state.unpack_state(checkpoint.tensors, "sums"))
        self.done = checkpoint.images_seen // self.schedule.batch

    def _misfit(self, checkpoint: state.Checkpoint) -> str | None:
        """Return why this run cannot continue from a checkpoint; None if it can."""
        seen, log_bytes = checkpoint.images_seen, checkpoint.meta.get("log_bytes", -1)
        if seen % self.schedule.batch or not 0 < seen <= self.schedule.images:
            return f"{seen:,} images seen; expected whole batches within {self.schedule.images:,}"
        if log_bytes < 0:
            return f"log_bytes is {log_bytes}; expected the bytes of {METRICS}"
        name, of_checkpoint = run_name(self.run), checkpoint.meta.get("run")
        if name is not None and of_checkpoint not in (None, int(name, 16)):
            return f"it was copied from another one, {of_checkpoint:016x}, and this is {name}"
        optimizer = state.unpack_state(checkpoint.tensors, "optimizer")
        expected = state.expected_optimizer(self.step, optimizer)
        return mismatch(checkpoint.tensors, self._state(expected, self.sums.tensors()))

    def save_snapshot(self, preset: str) -> None:
        """Write RUN/snapshot: the averaged weights, and the facts of their training."""
        objective = self.config.objective
        scalars = {name: value.item() for name, value in self.step.objective.scalars().items()}
        about: dict[str, object] = {
            "preset": preset,
            "seed": self.config.seed,
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
        if (name := run_name(self.run)) is not None:
            about["run"] = name
        if self.dataset.normalisation is not None:
            about["normalisation"] = asdict(self.dataset.normalisation)
        snapshot.save(self.ema, self.run / "snapshot", about)

    def _stops(self, interrupted: bool, last: bool) -> bool:
        """Return whether any rank is interrupted: all must stop at the same step.

        Where several GPUs synchronise for it, not every step asks.
        """
        if self.accelerator.num_processes == 1:
            return interrupted
        if not last and self.device.type != "cpu" and self.done % INTERRUPT_CHECK_EVERY:
            return False
        flag = torch.tensor(int(interrupted), device=self.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _refuse_non_finite(self) -> None:
        bad = self.sums.bad()
        if bad is None:
            return
        images, terms = bad
        saved = state.newest_images(self.run)
        kept = (
            f"The last checkpoint is from {saved:,} images" if saved else "No checkpoint is saved"
        )
        keys = self.split.keys(self.loader.indices(images))
        raise NonFiniteError(
            f"{', '.join(terms)} not finite in the step after {images:,} images. Its batch: "
            f"{', '.join(keys[:8])} and {max(0, len(keys) - 8)} more. {kept}; try a lower "
            "--optim.lr, or --precision fp32."
        )
