"""Runs: schedules, checkpoints, resuming to the bit, interruption, faults of a user."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import DataError
from common.records import differences
from pipeline.index import Dataset, open_dataset
from tests.helpers.messages import collected_messages
from tests.helpers.training import (
    load_undamaged,
    log_without_clock,
    make_trainer,
    newest_tensors,
    same_tensors,
    short_config,
    train_until,
)
from train import checkpoint as state
from train.config import PRESETS, as_json, from_json
from train.loop import NonFiniteError
from train.prepare import identity
from train.schedule import ema_decay, learning_rate, make_schedule


@pytest.fixture(scope="module")
def dataset(small_dataset: Path) -> Dataset:
    return open_dataset(small_dataset)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns(preset: str, dataset: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(dataset, tmp_path, short_config(preset, images=320, batch_size=16))
    assert train_until(trainer, tmp_path)
    losses = [r["loss"] for r in log_without_clock(tmp_path) if r["kind"] == "train"]
    assert losses[-1] < losses[0]
    values = [r for r in log_without_clock(tmp_path) if r["kind"] == "val"]
    scores = [v for record in values for v in record.values() if isinstance(v, float)]
    assert len(values) == 2 and scores and np.isfinite(scores).all()


def test_the_average_keeps_no_graph(dataset: Dataset, tmp_path: Path) -> None:
    trainer = make_trainer(dataset, tmp_path, short_config())
    for batch, _ in zip(trainer.loader.batches(0, 16), range(2), strict=True):
        trainer.update(batch)
    assert all(p.is_leaf and not p.requires_grad for p in trainer.ema.parameters())


def test_two_runs_are_identical_and_seeds_differ(dataset: Dataset, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_until(
            make_trainer(dataset, tmp_path / name, short_config(seed=seed)), tmp_path / name
        )
    a, b, c = (newest_tensors(tmp_path / name) for name in "abc")
    assert same_tensors(a, b)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_timing_steps_ahead_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("timed", "plain"):
        trainer = make_trainer(dataset, tmp_path / name, short_config())
        assert name == "plain" or trainer.seconds_left() > 0
        train_until(trainer, tmp_path / name)
    a, b = (newest_tensors(tmp_path / name) for name in ("timed", "plain"))
    assert same_tensors(a, b)


def test_a_config_from_before_an_option_existed_is_the_same_run() -> None:
    """Options that are added later stand at the defaults under which the run was made."""
    settings = as_json(short_config())
    older = {name: value for name, value in settings.items() if name != "deterministic"}
    objective = asdict(short_config().objective)
    older["objective"] = {name: value for name, value in objective.items() if name != "form"}
    assert older != settings and identity(older, "0") == identity(settings, "0")
    graphs = identity(as_json(short_config(cuda_graphs=True)), "0")
    assert differences(identity(older, "0"), graphs) == ["config.cuda_graphs: False -> True"]
    unknown = {**older, "later": 1}
    assert differences(identity(unknown, "0"), identity(settings, "0"))


@pytest.mark.parametrize("steps", [(1,), (5,), (6,), (11,), (3, 7)])
@pytest.mark.parametrize("storage", ["host", "stream"])
def test_resuming_is_identical_to_the_bit(
    steps: tuple[int, ...], storage: str, dataset: Dataset, tmp_path: Path
) -> None:
    settings = short_config(storage=storage)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_until(make_trainer(dataset, whole, settings), whole)
    trainer, log_bytes = make_trainer(dataset, cut, settings), 0
    for step in (*steps, None):
        assert train_until(trainer, cut, step, log_bytes) is (step is None)
        checkpoint = load_undamaged(cut)
        assert checkpoint is not None
        trainer, log_bytes = make_trainer(dataset, cut, settings), checkpoint.meta["log_bytes"]
        trainer.restore(checkpoint)
    a, b = newest_tensors(whole), newest_tensors(cut)
    assert same_tensors(a, b)
    assert log_without_clock(whole) == log_without_clock(cut)


def test_a_lost_tail_of_the_log_is_written_again(dataset: Dataset, tmp_path: Path) -> None:
    """Killed after a checkpoint: lines past it are cut off, not repeated."""
    settings = short_config()
    trainer = make_trainer(dataset, tmp_path, settings)
    train_until(trainer, tmp_path)
    expected = log_without_clock(tmp_path)
    checkpoints = sorted((tmp_path / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    (checkpoints[-1] / state.META).unlink()
    with collected_messages() as messages:
        checkpoint = state.load_newest(tmp_path)
    assert checkpoint is not None and checkpoints[-1].name in messages[0]
    resumed = make_trainer(dataset, tmp_path, settings)
    resumed.restore(checkpoint)
    train_until(resumed, tmp_path, None, checkpoint.meta["log_bytes"])
    assert log_without_clock(tmp_path) == expected


@pytest.mark.parametrize("damage", ["flip", "truncate", "no tensors", "no meta", "bad json"])
def test_damaged_checkpoints_are_passed_over(damage: str, tmp_path: Path) -> None:
    for images in (8, 16):
        state.save_checkpoint(tmp_path, images, {}, {"w": torch.full((3,), float(images))}, keep=2)
    folder = tmp_path / "checkpoints" / f"{16:012d}"
    tensors, meta = folder / state.TENSORS, folder / state.META
    blob = bytearray(tensors.read_bytes())
    blob[-1] ^= 1
    {
        "flip": lambda: tensors.write_bytes(blob),
        "truncate": lambda: tensors.write_bytes(blob[:-4]),
        "no tensors": tensors.unlink,
        "no meta": meta.unlink,
        "bad json": lambda: meta.write_text("{"),
    }[damage]()
    with collected_messages() as messages:
        loaded = state.load_newest(tmp_path)
    assert loaded is not None and loaded.images_seen == 8
    assert torch.equal(loaded.tensors["w"], torch.full((3,), 8.0))
    assert str(folder) in messages[0]


def test_old_checkpoints_go_only_after_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for images in (8, 16, 24):
        state.save_checkpoint(tmp_path, images, {}, {"w": torch.zeros(3)}, keep=2)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"{16:012d}", f"{24:012d}"]

    def full(path: Path, data: bytes) -> None:
        raise DataError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(state, "write_atomically", full)
    with pytest.raises(DataError, match="no space"):
        state.save_checkpoint(tmp_path, 32, {}, {"w": torch.zeros(3)}, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == kept


def test_non_finite_loss_stops_at_that_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(dataset, tmp_path, short_config())
    original = trainer.step.objective.forward

    def poisoned(*args: Any) -> dict[str, Tensor]:
        losses = original(*args)
        return {**losses, "kl": losses["kl"] * float("nan")} if trainer.done == 7 else losses

    monkeypatch.setattr(trainer.step.objective, "forward", poisoned)
    with pytest.raises(NonFiniteError, match=r"kl not finite in the step after 56 images.*s0000"):
        train_until(trainer, tmp_path)
    newest = load_undamaged(tmp_path)
    assert newest is not None and newest.images_seen <= 56
    assert all(torch.isfinite(t.float()).all() for t in newest.tensors.values())


def test_budget_is_rounded_up_to_whole_batches() -> None:
    assert make_schedule(short_config(images=17, batch_size=8)).images == 24
    assert make_schedule(short_config(images=16, batch_size=8)).images == 16


def test_schedules() -> None:
    optim = short_config().optim
    assert learning_rate(optim, optim.warmup) == pytest.approx(optim.lr)
    assert learning_rate(optim, optim.warmup / 2) == pytest.approx(optim.lr / 2)
    assert learning_rate(optim, 1.0) == pytest.approx(0, abs=1e-12)
    for steps in (1, 2, 50, 1000):  # every step trains, the last and an only one as well
        schedule = make_schedule(short_config(images=8 * steps))
        rates = [learning_rate(optim, schedule.progress(done)) for done in range(steps)]
        assert min(rates) > 0
        # the middle of a step: the mean over steps is the integral of the schedule
        expected = optim.lr * 0.5
        assert steps < 50 or np.mean(rates) == pytest.approx(expected, rel=1e-3)
    weight, seen = 1.0, 10_000  # one half-life later, half of the old average is left
    for _ in range(50):
        weight *= ema_decay(optim, seen, 10)
    assert weight == pytest.approx(0.5)


def test_config_survives_its_file() -> None:
    for name, preset in PRESETS.items():
        settings = preset()
        raw = json.loads(json.dumps(as_json(settings)))
        assert from_json(raw) == settings, name
        assert not differences(raw, as_json(settings))
    changed = as_json(replace(short_config(), seed=3))
    assert differences(as_json(short_config()), changed) == ["seed: 0 -> 3"]
