"""Training without a preset: both arms of the comparison, and one report on them."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training import newest_tensors, run_status, same_tensors
from train import main as command
from train import program
from train.arguments import parse
from train.config import COMPARISON
from train.loop import Trainer

BUDGET = ("--images", "64", "--batch-size", "16", "--loop.validations", "1", "--track")
ARMS = [f"{name}-s3" for name in COMPARISON]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Undo what training does to signals and threads."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)


def main(data: Path, out: Path, *more: str, preset: tuple[str, ...] = ()) -> int:
    places = ("--data", str(data), "--out", str(out))
    return command.main([*preset, *places, "--seed", "3", *BUDGET, *more])


def test_without_a_preset_both_arms_get_the_settings() -> None:
    arms = parse(["--seed", "3", "--images", "64", "--out", "runs"])
    assert tuple(arms) == COMPARISON
    configs = [arguments.config for arguments in arms.values()]
    assert {(config.seed, config.images) for config in configs} == {(3, 64)}
    assert [str(arguments.out) for arguments in arms.values()] == [f"runs/{arm}" for arm in ARMS]
    assert [str(arguments.out) for arguments in parse([]).values()] == [
        f"data/processed/{name}-s0" for name in COMPARISON
    ]
    assert parse(["dvae"])["dvae"].out is None


def test_settings_that_leave_nothing_to_compare_are_refused() -> None:
    with pytest.raises(ValueError, match="dvae and eq-dvae are the same: name the preset"):
        parse(["--objective.equivariance", "1"])


@pytest.mark.slow
def test_a_comparison_continues_in_the_arm_that_was_interrupted(
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, update = tmp_path / "both", Trainer.update
    folders = [out / arm for arm in ARMS]

    def update_until_stopped(trainer: Trainer, batch: Any) -> None:
        update(trainer, batch)
        if trainer.run == folders[1] and trainer.done == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_until_stopped)
        assert main(small_dataset, out) == program.STOPPED
    assert [run_status(folder) for folder in folders] == ["done", "interrupted"]
    assert not (out / "report").exists()
    said = capfd.readouterr().out
    assert f" with {COMPARISON[1]}\n" in said  # the time of both
    first = (folders[0] / "metrics.jsonl").read_bytes()
    assert main(small_dataset, out) == program.UNUSABLE_ARGUMENTS
    assert main(small_dataset, out, "--resume") == program.DONE
    assert (folders[0] / "metrics.jsonl").read_bytes() == first
    assert [run_status(folder) for folder in folders] == ["done", "done"]
    assert {*json.loads((out / "report/report.json").read_text())["runs"]} == set(ARMS)
    for name, folder in zip(COMPARISON, folders, strict=True):
        alone = tmp_path / name
        assert main(small_dataset, alone, preset=(name,)) == program.DONE
        assert same_tensors(newest_tensors(folder), newest_tensors(alone))
