"""Checkpoints of a run: when they fail, what reaches none, and what a resume leaves as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from common.errors import DataError
from models.objective import Inputs
from pipeline.index import Dataset, open_dataset
from tests.helpers.training import (
    full_disk_from,
    load_undamaged,
    log_without_clock,
    make_trainer,
    newest_tensors,
    same_tensors,
    short_config,
    train_until,
)
from train import checkpoint as state
from train.config import Config
from train.loop import NonFiniteError

SAVED = 6, 12  # the steps with a checkpoint


def config(**changes: Any) -> Config:
    """The cheapest preset: 12 steps of 8 images, checkpoints after 6 and 12."""
    return short_config("vae", **changes)


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Dataset:
    return open_dataset(small_dataset)


@pytest.mark.parametrize("step", SAVED)
def test_a_failed_write_stops_the_run(
    step: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle one long before the end; the last one after the last step, but not as done."""
    monkeypatch.setattr(state, "save_checkpoint", full_disk_from(8 * step))
    trainer = make_trainer(dataset, tmp_path, config())
    with pytest.raises(DataError, match=f"at {8 * step} images was not saved: no space"):
        train_until(trainer, tmp_path)
    assert trainer.done <= 12 and len(list((tmp_path / "checkpoints").glob("0*"))) == (step == 12)


@pytest.mark.parametrize(
    ("step", "where", "value"),
    [
        (2, "data", float("inf")),
        (SAVED[0], "data", float("nan")),
        (SAVED[0], "weight", float("inf")),
        (SAVED[0] - 1, "weight", float("nan")),
    ],
)
def test_a_value_that_is_not_finite_reaches_no_checkpoint(
    step: int,
    where: str,
    value: float,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in the very step of a checkpoint; the message names terms, step and samples."""
    trainer = make_trainer(dataset, tmp_path, config())
    forward = trainer.step.objective.forward

    def poisoned(model: Any, inputs: Inputs) -> dict[str, Tensor]:
        if trainer.done == step - 1 and where == "data":
            x_tilde = inputs.x_tilde.index_fill(0, torch.tensor([0]), value)
            inputs = inputs._replace(x_tilde=x_tilde)
        if trainer.done == step - 1 and where == "weight":
            model.encoder.stem.gain.data[0] = value
        return forward(model, inputs)

    monkeypatch.setattr(trainer.step.objective, "forward", poisoned)
    names = rf"loss, reconstruction.* not finite in the step after {8 * (step - 1)} images.*s0000"
    with pytest.raises(NonFiniteError, match=names):
        train_until(trainer, tmp_path)
    assert load_undamaged(tmp_path) is None


def test_a_weight_spoilt_after_its_step_is_not_saved(dataset: Dataset, tmp_path: Path) -> None:
    """Losses and gradient were finite: only the file that would be written shows it."""
    trainer = make_trainer(dataset, tmp_path, config())
    step = trainer.optimizer.step

    def spoilt() -> None:
        step()
        if trainer.done == SAVED[0] - 1:
            trainer.model.encoder.stem.gain.data[0] = float("inf")

    trainer.optimizer.step = spoilt  # type: ignore[method-assign, assignment]
    with pytest.raises((DataError, NonFiniteError), match="not finite"):
        train_until(trainer, tmp_path)
    assert load_undamaged(tmp_path) is None


def test_a_run_that_is_done_stays_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    train_until(make_trainer(dataset, tmp_path, config()), tmp_path)
    before, log = newest_tensors(tmp_path), log_without_clock(tmp_path)
    for _ in range(2):
        checkpoint = load_undamaged(tmp_path)
        assert checkpoint is not None and checkpoint.images_seen == 96
        resumed = make_trainer(dataset, tmp_path, config())
        resumed.restore(checkpoint)
        assert train_until(resumed, tmp_path, None, checkpoint.meta["log_bytes"])
        assert resumed.done == 12 and same_tensors(before, newest_tensors(tmp_path))
        assert log_without_clock(tmp_path) == log


@pytest.mark.slow
def test_a_compiled_step_is_compiled_once(dataset: Dataset, tmp_path: Path) -> None:
    """An epoch of 48 patches ends inside a batch of 20: there is no smaller, last batch."""
    trainer = make_trainer(dataset, tmp_path, config(images=200, batch_size=20))
    counter = torch._dynamo.testing.CompileCounter()
    trainer.step.compile(backend=counter, fullgraph=True, dynamic=False)
    shapes = {batch.images.shape for batch in trainer.loader.batches(0, 200)}
    assert train_until(trainer, tmp_path) and trainer.done == 10
    assert counter.frame_count == 1 and len(shapes) == 1
