"""A run that is stopped: signals at every stage, kills at any moment, and what resuming gives."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.crashes.calls import kill_at_file_operation
from tests.helpers.patches import write_patches
from tests.helpers.training import (
    full_disk_from,
    load_undamaged,
    log_without_clock,
    newest_tensors,
    run_status,
    same_tensors,
)
from train import checkpoint as state
from train import launch, loop, program
from train import main as command
from train.loop import Trainer

pytestmark = pytest.mark.usefixtures("main_in_process")

ROOT = Path(__file__).resolve().parents[2]
BUDGET = [
    *("--images", "72"),
    *("--batch-size", "12"),
    *("--loop.checkpoints", "2"),
    *("--loop.validations", "3"),
    "--track",
]


def main(data: Path, run: Path, *more: str) -> int:
    """6 steps over an epoch of 48 patches and a half; checkpoints after 36 and 72 images."""
    argv = ["dvae", "--data", str(data), "--out", str(run), *more, *BUDGET]
    return command.main(argv)


@pytest.fixture(scope="module")
def reference(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert main(small_dataset, run) == program.DONE
    return run


def images_saved(run: Path) -> int:
    checkpoint = load_undamaged(run)
    return checkpoint.images_seen if checkpoint else 0


def assert_alike(run: Path, reference: Path) -> None:
    assert run_status(run) == "done" and same_tensors(
        newest_tensors(run), newest_tensors(reference)
    )
    assert log_without_clock(run) == log_without_clock(reference)
    weights = "snapshot/model.safetensors"
    assert (run / weights).read_bytes() == (reference / weights).read_bytes()


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("number", "owner", "name", "seen", "left"),
    [
        pytest.param(TERM, Trainer, "_backward", 0, 0, id="the first step, which compiles"),
        pytest.param(INT, Trainer, "_backward", 36, 48, id="a step"),
        pytest.param(signal.SIGUSR1, Trainer, "_validate", 24, 24, id="a validation"),
        pytest.param(TERM, Trainer, "_backward", 60, 72, id="the last step"),
        pytest.param(signal.SIGHUP, program, "conclude", 72, 72, id="the evaluation"),
    ],
)
def test_a_signal_ends_the_run_and_keeps_the_newest_checkpoint(
    number: int,
    owner: Any,
    name: str,
    seen: int,
    left: int,
    reference: Path,
    small_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training ends after the step or the validation at hand; all else ends at once."""
    original, update, trained = getattr(owner, name), Trainer.update, [0]

    def counted(self: Trainer, batch: Any) -> None:
        update(self, batch)
        trained.append(self.images_seen)

    def signalled(*args: Any) -> Any:
        if trained[-1] == seen:
            signal.raise_signal(number)
            assert 0 < seen < 72, "nothing is left to do after the signal"
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", counted)
        patch.setattr(owner, name, signalled)
        assert main(small_dataset, tmp_path) == program.STOPPED
    assert run_status(tmp_path) == "interrupted" and images_saved(tmp_path) == trained[-1] == left
    assert main(small_dataset, tmp_path, "--resume") == program.DONE
    assert_alike(tmp_path, reference)


def test_a_full_disk_leaves_no_run_that_is_done(
    small_dataset: Path,
    tmp_path: Path,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The write of the last checkpoint fails after the last step."""
    with monkeypatch.context() as patch:
        patch.setattr(state, "save_checkpoint", full_disk_from(72))
        assert main(small_dataset, tmp_path) == program.FAILED
    assert "at 72 images was not saved: no space" in capfd.readouterr().err
    assert run_status(tmp_path) == "failed" and images_saved(tmp_path) == 36
    assert not (tmp_path / "snapshot").exists()
    assert main(small_dataset, tmp_path, "--resume") == program.DONE
    assert_alike(tmp_path, reference)


@pytest.mark.parametrize("change", ["--seed", "--optim.lr", "--storage", "data set"])
def test_another_config_or_data_set_is_refused(
    change: str,
    small_dataset: Path,
    reference: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    values = {"--seed": "7", "--optim.lr": "0.5", "--storage": "stream"}
    more = [change, values[change]] if change in values else []
    data = small_dataset
    if not more:
        write_patches(tmp_path / "raw", {"train": 24}, ("normal", "tumor"), seed=1)
        pack(tmp_path / "raw", data := tmp_path / "shards", PackOptions(workers=1))
    assert main(data, reference, "--resume", *more) == program.UNUSABLE_ARGUMENTS
    error = capfd.readouterr().err
    assert f"{change.strip('-')}: " in error if more else "data.hash: " in error
    assert not more or f"-> {values[change]}" in error
    assert before == {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}


def test_a_run_without_a_whole_checkpoint_is_refused_by_name(
    small_dataset: Path, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    log = log_without_clock(tmp_path)
    assert main(small_dataset, tmp_path, "--resume") == program.FAILED
    error = capfd.readouterr().err
    assert "none of the 2 checkpoints" in error and error.count("was altered") == 2
    assert run_status(tmp_path) == "failed" and log_without_clock(tmp_path) == log


def test_what_a_crash_leaves_in_a_run_is_cleared(
    small_dataset: Path, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before the first file of the run, and after the last checkpoint, half-way in removals."""
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.12.tmp.json").touch()
    assert main(small_dataset, run) == program.DONE
    (run / "checkpoints" / f"{12:012d}").mkdir()
    (run / "checkpoints" / ".partial-000000000048").mkdir()
    for name in (".status.12.tmp.json", "snapshot/.config.12.tmp.json"):
        (run / name).touch()
    assert main(small_dataset, run, "--resume") == program.DONE
    assert_alike(run, reference)
    names = {path.relative_to(reference) for path in reference.rglob("*")}
    assert {path.relative_to(run) for path in run.rglob("*")} == names
    log = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(log[:50])
    capfd.readouterr()
    assert main(small_dataset, run, "--resume") == program.DONE
    warned = f"metrics.jsonl has 50 bytes, but had {len(log):,} at the checkpoint"
    assert warned in capfd.readouterr().err


def victim(data: Path, run: Path, moment: str, count: int) -> None:
    """A process of its own that trains or resumes, and gets SIGKILL at a stated moment."""
    launch.threads_for, program.conclude = (lambda *args: 1), (lambda *args: None)
    decay, save = loop.ema_decay, state.save_checkpoint
    steps = 0

    def in_step(*args: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == count:  # the optimizer has moved the weights, the average has not followed
            os.kill(os.getpid(), signal.SIGKILL)
        return decay(*args)

    def in_write(*args: Any) -> None:
        kill_at_file_operation(count)
        save(*args)

    if moment == "step":
        loop.ema_decay = in_step
    elif moment == "write":
        state.save_checkpoint = in_write
    sys.exit(main(data, run, "--resume"))


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_as_if_it_had_not_been(
    small_dataset: Path, tmp_path: Path, reference: Path
) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.train.test_stopped"])  # torch is imported once
    draw = random.Random(0)
    kills = [("step", draw.randrange(1, 6)) for _ in range(4)]
    kills += [("write", draw.randrange(1, 10)) for _ in range(4)]
    draw.shuffle(kills)
    for moment, count in [*kills, ("nothing", 0)]:
        process = processes.Process(target=victim, args=(small_dataset, tmp_path, moment, count))
        process.start()
        process.join(timeout=300)
        code = process.exitcode
        # near the end there may be no such step any more, and then the run is done
        assert code == -signal.SIGKILL or (code == 0 and images_saved(tmp_path) == 72), (
            moment,
            count,
        )
    assert code == 0
    assert_alike(tmp_path, reference)


@pytest.mark.slow
def test_sigterm_while_compiling_ends_at_once_and_leaves_no_process(
    small_dataset: Path, tmp_path: Path
) -> None:
    places = ["--data", str(small_dataset), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "train/main.py", "vae", *places, "--compile", "True", *BUDGET]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any("compiling the step" in line for line in process.stdout)
    while not (workers := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=120) == program.STOPPED
    assert run_status(tmp_path / "run") == "interrupted" and images_saved(tmp_path / "run") == 0
    assert not psutil.wait_procs(workers, timeout=60)[1], "a compiler outlives the run"
