"""Checkpoints beside training: what they hold, when they fail, and what reaches none."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from common.errors import DataError
from pipeline.index import Dataset, open_dataset
from tests.train.test_loop import config as config_of
from tests.train.test_loop import final_state, log_without_clock, train_until, trainer
from train import checkpoint as state
from train.config import Config
from train.loop import NonFiniteError
from train.saver import Saver
from train.tracker import LOG, Tracker

PATIENCE_S = 120.0  # only a test that fails waits as long
SAVED = 6, 12  # the steps with a checkpoint
write = state.save_checkpoint


def config(**changes: Any) -> Config:
    """The cheapest preset: 12 steps of 8 images, checkpoints after 6 and 12."""
    return config_of("vae", **changes)


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Dataset:
    return open_dataset(small_dataset)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_steps_go_on_while_a_checkpoint_of_an_earlier_one_is_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, beside = tmp_path / "stopped", tmp_path / "beside"
    train_until(trainer(dataset, stopped, config()), stopped, SAVED[0])
    go = threading.Event()

    def held_up(*args: Any) -> None:
        assert go.wait(PATIENCE_S), "no step was trained while the checkpoint was written"
        write(*args)

    monkeypatch.setattr(state, "save_checkpoint", held_up)
    one = trainer(dataset, beside, config())

    def after_each_step() -> bool:
        if one.done == SAVED[0] + 3:
            assert not list((beside / "checkpoints").glob("*"))
            go.set()
        return False

    assert one.train(Tracker(beside, []), after_each_step)
    folders = sorted((beside / "checkpoints").iterdir())
    assert [int(folder.name) for folder in folders] == [8 * step for step in SAVED]
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    folders[0].rename(tmp_path / "first" / "checkpoints" / folders[0].name)
    early, expected = (state.load_newest(tmp_path / n, pytest.fail) for n in ("first", "stopped"))
    assert early is not None and expected is not None and same(early.tensors, expected.tensors)
    log = beside / LOG  # the length of the log is that of the step as well: the clock's aside
    log.write_bytes(log.read_bytes()[: early.meta["log_bytes"]])
    assert log_without_clock(beside) == log_without_clock(stopped)


def test_one_write_at_a_time_and_none_after_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    def noted(run: Path, images: int, *rest: Any) -> None:
        log.append(f"begin {images}")
        threading.Event().wait(0.05)  # would overlap with the next one, were it not waited for
        write(run, images, *rest)
        log.append(f"end {images}")

    monkeypatch.setattr(state, "save_checkpoint", noted)
    tensors = {"w": torch.zeros(3)}
    with Saver(tmp_path, 2, pytest.fail) as saver:
        for images in (8, 16, 24):
            tensors["w"] += 1
            saver.save(images, {}, tensors)
            tensors["w"].mul_(1.0)
    assert log == [f"{what} {n}" for n in (8, 16, 24) for what in ("begin", "end")]
    found = state.load_newest(tmp_path, pytest.fail)
    assert found is not None and torch.equal(found.tensors["w"], torch.full((3,), 3.0))


def refuse(images: int) -> Callable[..., None]:
    """A writer whose disk is full from `images` on."""

    def full(run: Path, seen: int, *rest: Any) -> None:
        if seen >= images:
            raise DataError(f"checkpoint at {seen:,} images was not saved: no space left")
        write(run, seen, *rest)

    return full


@pytest.mark.parametrize("step", SAVED)
def test_a_failed_write_stops_the_run(
    step: int, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle one long before the end; the last one after the last step, but not as done."""
    monkeypatch.setattr(state, "save_checkpoint", refuse(8 * step))
    one = trainer(dataset, tmp_path, config())
    with pytest.raises(DataError, match=f"at {8 * step} images was not saved: no space"):
        train_until(one, tmp_path)
    assert one.done <= 12 and len(list((tmp_path / "checkpoints").glob("0*"))) == (step == 12)


def test_the_error_of_a_write_does_not_hide_that_of_the_run(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    one = trainer(dataset, tmp_path, config())
    one.say = said.append
    failed = threading.Event()

    def full(*args: Any) -> None:
        assert failed.wait(PATIENCE_S)
        raise DataError("no space left")

    def poisoned() -> bool:
        if one.done == SAVED[0] + 1:
            torch.nn.init.constant_(one.model.decoder.stem.weight, float("nan"))
        return False

    refuse_non_finite = one._refuse_non_finite

    def then_fail() -> None:
        try:
            refuse_non_finite()
        except NonFiniteError:
            failed.set()
            raise

    monkeypatch.setattr(state, "save_checkpoint", full)
    monkeypatch.setattr(one, "_refuse_non_finite", then_fail)
    with pytest.raises(NonFiniteError, match="in the step after 56 images"):
        one.train(Tracker(tmp_path, []), poisoned)
    assert said[-1] == "error: no space left"


@pytest.mark.parametrize(
    ("step", "where", "value"),
    [(2, "data", float("inf")), (SAVED[0], "data", float("nan")),
     (SAVED[0], "weight", float("inf")), (SAVED[0] - 1, "weight", float("nan"))],
)  # fmt: skip
def test_a_value_that_is_not_finite_reaches_no_checkpoint(
    step: int, where: str, value: float, dataset: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also in the very step of a checkpoint; the message names terms, step and samples."""
    one = trainer(dataset, tmp_path, config())
    forward = one.step.objective.forward

    def poisoned(model: Any, x: Tensor, x_tilde: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        if one.done == step - 1 and where == "data":
            x_tilde = x_tilde.index_fill(0, torch.tensor([0]), value)
        if one.done == step - 1 and where == "weight":
            model.encoder.stem.gain.data[0] = value
        return forward(model, x, x_tilde, *rest)

    monkeypatch.setattr(one.step.objective, "forward", poisoned)
    names = rf"loss, reconstruction.* not finite in the step after {8 * (step - 1)} images.*s0000"
    with pytest.raises(NonFiniteError, match=names):
        train_until(one, tmp_path)
    assert state.load_newest(tmp_path, pytest.fail) is None


def test_a_weight_spoilt_after_its_step_is_not_saved(dataset: Dataset, tmp_path: Path) -> None:
    """Losses and gradient were finite: only the file that would be written shows it."""
    one = trainer(dataset, tmp_path, config())
    step = one.optimizer.step

    def spoilt() -> None:
        step()
        if one.done == SAVED[0] - 1:
            one.model.encoder.stem.gain.data[0] = float("inf")

    one.optimizer.step = spoilt  # type: ignore[method-assign, assignment]
    with pytest.raises((DataError, NonFiniteError), match="not finite"):
        train_until(one, tmp_path)
    assert state.load_newest(tmp_path, pytest.fail) is None


def test_a_run_that_is_done_stays_as_it_is(dataset: Dataset, tmp_path: Path) -> None:
    train_until(trainer(dataset, tmp_path, config()), tmp_path)
    before, log = final_state(tmp_path), log_without_clock(tmp_path)
    for _ in range(2):
        checkpoint = state.load_newest(tmp_path, pytest.fail)
        assert checkpoint is not None and checkpoint.images_seen == 96
        again = trainer(dataset, tmp_path, config())
        again.restore(checkpoint)
        assert train_until(again, tmp_path, None, checkpoint.meta["log_bytes"])
        assert again.done == 12 and same(before, final_state(tmp_path))
        assert log_without_clock(tmp_path) == log


@pytest.mark.slow
def test_a_compiled_step_is_compiled_once(dataset: Dataset, tmp_path: Path) -> None:
    """An epoch of 48 patches ends inside a batch of 20: there is no smaller, last batch."""
    one = trainer(dataset, tmp_path, config(images=200, batch_size=20))
    counter = torch._dynamo.testing.CompileCounter()
    one.step.compile(backend=counter, fullgraph=True, dynamic=False)
    shapes = {batch.images.shape for batch in one.loader.batches(0, 200)}
    assert train_until(one, tmp_path) and one.done == 10
    assert counter.frame_count == 1 and len(shapes) == 1
