"""A run that is continued with more images, against what docs/models.md says of it.

The kind: after the end and after an interruption; twice; killed before its first new checkpoint
and after it; with fewer images, with other settings besides; the settings of a continued run used
for a new one; two processes on one run folder.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json
from common.locks import LOCK, held
from common.records import convert
from eval.run import Phase, load_record
from pipeline.index import open_dataset
from tests.helpers.training import (
    load_undamaged,
    log_without_clock,
    make_trainer,
    newest_tensors,
    run_status,
    same_tensors,
    train_until,
)
from train import main as command
from train import program
from train.config import Config, from_json
from train.loop import Trainer
from train.schedule import learning_rate, make_schedule

pytestmark = pytest.mark.usefixtures("main_in_process")

BATCH, SHORT, LONG = 12, 48, 96
COMMON = [
    *("--batch-size", str(BATCH)),
    *("--loop.checkpoints", "2"),
    *("--loop.validations", "2"),
    *("--loop.logs", "100"),
    "--track",
]


def main(data: Path, run: Path, images: int, *more: str) -> int:
    places = ["--data", str(data), "--out", str(run), "--images", str(images)]
    return command.main(["vae", *places, *COMMON, *more])


@pytest.fixture(scope="module")
def short(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("short") / "run"
    assert main(small_dataset, run, SHORT) == program.DONE
    return run


@pytest.fixture
def copied(short: Path, tmp_path: Path) -> Path:
    shutil.copytree(short, tmp_path / "run")
    return tmp_path / "run"


def config_of(run: Path) -> Config:
    return from_json(load_record(run / "config.json").config)


def rates(run: Path) -> dict[int, float]:
    """The learning rate of the step that ended at each count of images."""
    return {r["images"]: r["lr"] for r in log_without_clock(run) if r["kind"] == "train"}


def scheduled(config: Config, images: int) -> float:
    schedule = make_schedule(config)
    return learning_rate(config.optim, schedule.progress(images // BATCH - 1))


def test_a_finished_run_continues_as_documented(
    copied: Path, small_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The state at the end of the first budget, and from there on the schedule of the second."""
    short_config = config_of(copied)
    assert main(small_dataset, copied, LONG, "--resume") == program.DONE
    output = capfd.readouterr().out
    assert f"the budget of {SHORT} images is now {LONG}" in output
    record, long_config = load_record(copied / "config.json"), config_of(copied)
    assert long_config.images == LONG and record.continued == [Phase(SHORT, SHORT)]
    for images, rate in rates(copied).items():
        config = short_config if images <= SHORT else long_config
        assert rate == pytest.approx(scheduled(config, images), rel=1e-12)
    assert len(rates(copied)) == LONG // BATCH and run_status(copied) == "done"
    # the same by hand: two trainers, the second of the larger budget
    dataset, by_hand = open_dataset(small_dataset), tmp_path / "by hand"
    train_until(make_trainer(dataset, by_hand, short_config), by_hand)
    second = make_trainer(dataset, by_hand, long_config)
    checkpoint = load_undamaged(by_hand)
    assert checkpoint is not None
    second.restore(checkpoint)
    assert train_until(second, by_hand, None, checkpoint.meta["log_bytes"])
    assert same_tensors(newest_tensors(by_hand), newest_tensors(copied))
    assert log_without_clock(by_hand) == log_without_clock(copied)


def test_a_continued_run_that_is_stopped_ends_as_if_it_had_not_been(
    short: Path, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its first new checkpoint and after it; and continued once more."""
    ends, update = [], Trainer.update
    for name, stops in (("never", []), ("often", [SHORT + BATCH, SHORT + 3 * BATCH])):
        run = tmp_path / name
        shutil.copytree(short, run)
        for seen in stops:
            with monkeypatch.context() as patch:

                def killed(self: Trainer, batch: Any, seen: int = seen) -> None:
                    update(self, batch)
                    if self.images_seen == seen:
                        raise KeyboardInterrupt

                patch.setattr(Trainer, "update", killed)
                with pytest.raises(KeyboardInterrupt):
                    main(small_dataset, run, LONG, "--resume")
        assert main(small_dataset, run, LONG, "--resume") == program.DONE
        assert main(small_dataset, run, LONG + SHORT, "--resume") == program.DONE
        phases = load_record(run / "config.json").continued
        assert phases == [Phase(SHORT, SHORT), Phase(LONG, LONG)]
        ends.append(newest_tensors(run))
    assert same_tensors(*ends)


def test_an_interrupted_run_takes_the_larger_budget_from_where_it_is(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(program.Interrupts, "requested", True, raising=False)
        patch.setattr(program.Interrupts, "__init__", lambda self: None)
        patch.setattr(program.Interrupts, "_can_finish", lambda: True, raising=False)
        assert main(small_dataset, tmp_path, SHORT) == program.STOPPED
    assert main(small_dataset, tmp_path, LONG, "--resume") == program.DONE
    assert load_record(tmp_path / "config.json").continued == [Phase(SHORT, BATCH)]
    rate, config = rates(tmp_path), config_of(tmp_path)
    assert rate[2 * BATCH] == pytest.approx(scheduled(config, 2 * BATCH), rel=1e-12)


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        (SHORT - BATCH, [], "images: 48 -> 36"),
        (LONG, ["--seed", "1"], "seed: 0 -> 1"),
        (LONG, ["--optim.lr", "0.5"], "optim.lr: 0.004 -> 0.5"),
    ],
)
def test_fewer_images_and_other_settings_are_refused(
    images: int,
    more: list[str],
    message: str,
    copied: Path,
    small_dataset: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert main(small_dataset, copied, images, "--resume", *more) == program.UNUSABLE_ARGUMENTS
    assert message in capfd.readouterr().err
    assert main(small_dataset, copied, LONG) == program.UNUSABLE_ARGUMENTS  # without --resume
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


def test_a_new_run_of_continued_settings_is_warned_of(
    copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = copied / "config.json"
    raw = read_json(path)
    assert "continued" not in raw  # runs that were not continued are written as before
    raw["continued"] = [{"images": SHORT, "until": SHORT}]
    raw["config"]["images"] = LONG
    path.write_text(json.dumps(raw))
    argv = [str(path), "--out", str(tmp_path / "new"), "--track"]
    assert command.main(argv) == program.DONE
    assert "was continued from 48 to 96 images" in capfd.readouterr().err
    convert(json.loads((tmp_path / "new/config.json").read_text())["config"], Config)


def test_a_second_process_on_a_run_is_refused(
    copied: Path, small_dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also on a folder in which no run has begun; its status and files stay the holder's."""
    for run, more in ((copied, ["--resume"]), (tmp_path / "new", [])):
        with held(run, "trains this run"):
            before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
            assert main(small_dataset, run, SHORT, *more) == program.UNUSABLE_ARGUMENTS
            assert f"process {os.getpid()} on" in capfd.readouterr().err
            after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
            assert before.keys() == after.keys()
            assert all(before[path] == after[path] for path in before if path.name != LOCK)
    assert not (copied / LOCK).exists()
