"""Sweeps, with a small script in place of training; one of real runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common import machine
from common.errors import DataError
from eval.results import load_results
from pipeline.index import open_dataset
from tests.helpers.sweeping import TIMEOUT_S, FakeSweep, when
from train.sweep import __main__ as command
from train.sweep import local
from train.sweep.local import divide
from train.sweep.runs import Programs, start, training, write_settings
from train.sweep.sweep import sweep_lock

ORDER = ["vae-s0", "dvae-s0", "eq-dvae-s0", "vae-s1", "dvae-s1", "eq-dvae-s1"]


@pytest.fixture
def fake(tmp_path: Path, small_dataset: Path) -> FakeSweep:
    return FakeSweep(tmp_path, small_dataset)


def test_all_runs_are_done_once(fake: FakeSweep) -> None:
    assert fake.sweep() == 0
    assert fake.started() == ORDER and set(fake.states()) == {"done"}
    assert all((run.folder / "log.txt").read_text().strip() for run in fake.runs)
    assert "left" in fake.messages[-4] and "eval.report" in fake.messages[-1]
    assert fake.sweep() == 0 and fake.started() == []


def test_a_recipe_in_the_same_folder_shares_runs(fake: FakeSweep) -> None:
    assert fake.sweep() == 0 and len(fake.started()) == 6
    fake.runs = fake.plan("models")
    for run in fake.runs:
        (fake.control / run.name).mkdir(exist_ok=True)
    assert fake.sweep() == 0 and fake.started() == ["ae-s0", "ae-s1"]


def test_a_failing_run_does_not_stop_the_others(fake: FakeSweep) -> None:
    marks = [fake.mark("dvae-s0", "failing"), fake.mark("vae-s1", "refused")]
    assert fake.sweep() == 1
    assert fake.states() == ["done", "failed", "done", "running", "done", "done"]
    failures = [line for line in fake.messages if line.startswith("failed: ")]
    assert failures == ["failed: dvae-s0: loss not finite", "failed: vae-s1: error: a bad setting"]
    for mark in marks:
        mark.unlink()
    fake.started()
    assert fake.sweep() == 0 and fake.started() == ["dvae-s0", "vae-s1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_an_interrupted_sweep_waits_for_its_runs_and_continues(
    number: int, code: int, fake: FakeSweep
) -> None:
    held = [fake.mark(name, "held") for name in ORDER[1:3]]
    started = [fake.control / name / "there" for name in ORDER[1:3]]
    sender = when(
        lambda: all(path.exists() for path in started), lambda: os.kill(os.getpid(), number)
    )
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert fake.sweep(jobs=2) == code
    sender.join()
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert fake.states() == ["done", "interrupted", "interrupted", *["to do"] * 3]
    assert sorted(fake.started()) == sorted(ORDER[:3])
    for path in held:
        path.unlink()
    assert fake.sweep() == 0 and fake.started() == ORDER[1:]


def test_runs_side_by_side_share_no_core(fake: FakeSweep) -> None:
    held = [fake.mark(name, "held") for name in ORDER[:2]]
    started = [fake.control / name / "there" for name in ORDER[:2]]
    releaser = when(
        lambda: all(path.exists() for path in started), lambda: [p.unlink() for p in held]
    )
    assert fake.sweep(jobs=2) == 0  # each of the two waits for the other
    releaser.join()
    if hasattr(os, "sched_getaffinity"):
        cores = os.sched_getaffinity(0)
        logs = [(run.folder / "log.txt").read_text() for run in fake.runs[:2]]
        first, second = (set(json.loads(log.split(maxsplit=1)[1])) for log in logs)
        assert first | second <= cores and (len(cores) == 1 or not first & second)


def test_cores_and_devices_are_divided() -> None:
    slots = divide(3, range(8), ["0", "1"])
    assert [sorted(slot.cores) for slot in slots] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0"]
    assert [len(slot.cores) for slot in divide(3, [4, 7], ["0"])] == [1, 1, 1]
    assert divide(1, range(8), []) == [(frozenset(), {})]


@pytest.mark.parametrize(
    ("cores", "usable", "jobs", "threads"), [(64, 64, 2, None), (64, 3, 2, 1), (64, 4, 1, 4)]
)
def test_jobs_share_a_quota_of_cpu_time(
    cores: int, usable: int, jobs: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "usable_core_numbers", lambda: set(range(cores)))
    monkeypatch.setattr(machine, "cpu_quota", lambda: usable)
    monkeypatch.setattr(local, "usable_core_numbers", machine.usable_core_numbers)
    assert local.share_of_quota(jobs) == threads


def test_other_settings_are_refused(fake: FakeSweep) -> None:
    left = fake.out / "configs" / ".vae-s0.12.tmp.json"
    left.parent.mkdir(parents=True)
    left.touch()  # by a sweep that was killed
    assert fake.sweep() == 0 and not left.exists()
    fake.runs = fake.plan(batch_size=32)
    with pytest.raises(DataError, match="batch_size: None -> 32"):
        fake.sweep()


def test_a_second_sweep_and_an_orphan_are_refused(fake: FakeSweep, small_dataset: Path) -> None:
    with sweep_lock(fake.out), pytest.raises(DataError, match="sweeps in that folder"):
        fake.sweep()
    held, run = fake.mark("vae-s0", "held"), fake.runs[0]
    write_settings([run], open_dataset(small_dataset))
    training_command = training(run, fake.programs)
    assert training_command is not None
    orphan = start(training_command)
    while not (fake.control / run.name / "there").exists():
        assert orphan.poll() is None, run.folder / "log.txt"
        time.sleep(0.02)
    with pytest.raises(DataError, match=f"process {orphan.pid}"):
        fake.sweep()
    held.unlink()
    assert orphan.wait(TIMEOUT_S) == 0 and fake.sweep() == 0


def test_the_full_evaluation_is_a_second_stage(fake: FakeSweep) -> None:
    mark = fake.mark("vae-s1", "failing")
    assert fake.sweep() == 1
    fake.programs = Programs(fake.program("train.py"), fake.program("evaluate.py"))
    mark.unlink()
    assert fake.sweep() == 0
    evaluated = (fake.control / "evaluated").read_text()
    first, others = ORDER[:1], [f"{name} --baselines" for name in ORDER[1:]]
    assert evaluated == "".join(f"{name}; " for name in [*first, *others])
    assert fake.sweep() == 0 and (fake.control / "evaluated").read_text() == evaluated


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep", "lambda", "--seeds", "2", "--dry-run"])
    assert command.main() == 0
    output = capsys.readouterr().out
    assert "eq-dvae-lambda0.1: 100,000 images; objective.equivariance: 0.0 -> 0.1" in output
    assert "[8/8] eq-dvae-lambda1-s1: to do" in output and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lamda"], "unknown recipe 'lamda'"),
        (["beta", "--images", "0"], "images is 0"),
        (["beta", "--jobs", "0"], "jobs is 0"),
        (["beta", "--engine", "slurm"], "needs --images"),
    ],
)
def test_unusable_arguments_end_with_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    assert command.main() == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_sweep_of_real_runs(small_dataset: Path, tmp_path: Path) -> None:
    """The ceiling, evaluated by the whole protocol."""
    out = tmp_path / "out"
    places = ["--data", str(small_dataset), "--out", str(out)]
    options = ["--seeds", "1", "--images", "128", "--batch-size", "16", "--evaluate", "full"]
    done = subprocess.run(
        [sys.executable, "-m", "train.sweep", "ceiling", *places, *options],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = load_results(out / "supervised-s0")
    assert results.probe["mean"].auroc > 0 and results.robustness is not None
    assert results.reconstruction.psnr is None and results.run.noise_var is None
