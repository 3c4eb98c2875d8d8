"""Sweeps as jobs of a cluster: submitit's executors, and the parts that need none of them."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import DataError
from pipeline.index import open_dataset
from tests.helpers.slurm import MISSING, TIMEOUT_S, WHY_SKIPPED, Slurm
from tests.helpers.sweeping import FakeSweep
from train.sweep.options import SlurmConfig
from train.sweep.runs import Programs, write_settings
from train.sweep.slurm import RunJob, in_queue, slurm_executor, submit


@pytest.fixture
def fake(tmp_path: Path, small_dataset: Path) -> FakeSweep:
    """A sweep of one run, its settings written."""
    fake = FakeSweep(tmp_path, small_dataset)
    fake.runs = fake.runs[:1]
    write_settings(fake.runs, open_dataset(small_dataset))
    return fake


class Recorder:
    """In the place of submitit's executor."""

    def __init__(self) -> None:
        self.jobs: list[RunJob] = []
        self.names: list[str] = []
        self.job_id = "0"

    def update_parameters(self, name: str) -> None:
        self.names.append(name)

    def submit(self, job: RunJob) -> "Recorder":
        self.jobs.append(job)
        self.job_id = str(40 + len(self.jobs))
        return self


def test_a_run_has_one_job_at_a_time(fake: FakeSweep) -> None:
    recorder = Recorder()

    def names(queued: set[str]) -> list[str]:
        return list(submit(recorder, fake.runs, fake.programs, lambda: queued))

    assert names(set()) == ["vae-s0"] and recorder.names == ["out-vae-s0"]
    assert names({"41"}) == []  # it waits or runs
    assert names({"7"}) == ["vae-s0"]  # it is gone, and the run not done
    recorder.jobs[0]()
    assert fake.states() == ["done"] and names(set()) == []


def test_a_job_fails_with_its_run(fake: FakeSweep) -> None:
    fake.mark("vae-s0", "failing")
    with pytest.raises(RuntimeError, match="vae-s0: loss not finite"):
        RunJob(fake.runs[0], fake.programs)()


def test_a_job_trains_and_evaluates(fake: FakeSweep) -> None:
    programs = Programs(fake.program("train.py"), fake.program("evaluate.py"))
    RunJob(fake.runs[0], programs)()
    RunJob(fake.runs[0], programs)()  # as after a requeue: nothing is left to do
    assert fake.started() == ["vae-s0"]
    assert (fake.control / "evaluated").read_text() == "vae-s0; "


def test_a_missing_submitit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(DataError, match="extra slurm"):
        slurm_executor(tmp_path, SlurmConfig())


def test_parameters_are_those_of_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor = slurm_executor(tmp_path, SlurmConfig(partition="long", gpus=0, cpus=4, hours=0.5))
    executor.update_parameters(name="x")
    text = executor._executor._make_submission_file_text("train", "id")
    expected = {
        "partition=long",
        "cpus-per-task=4",
        "time=30",
        "signal=USR2@120",
        "requeue",
        "job-name=x",
    }
    assert expected <= {line.removeprefix("#SBATCH --") for line in text.splitlines()}
    assert "gpus" not in text and "account" not in text


@pytest.mark.long
def test_a_preempted_job_is_queued_again_and_continues(fake: FakeSweep) -> None:
    submitit = pytest.importorskip("submitit")
    held, started = fake.mark("vae-s0", "held"), fake.control / "vae-s0" / "there"
    executor = submitit.LocalExecutor(fake.out / "slurm" / "%j")
    executor.update_parameters(timeout_min=5)
    job = submit(_Named(executor), fake.runs, fake.programs, set)["vae-s0"]
    try:
        _wait(started.exists, job)
        started.unlink()
        for each in psutil.Process(job._process.pid).children(recursive=True):
            each.send_signal(signal.SIGUSR2)  # every process of the job, as Slurm does
        _wait(started.exists, job)
        assert fake.started() == ["vae-s0", "vae-s0"]
        held.unlink()
        job.result()
        assert fake.states() == ["done"]
    finally:
        held.unlink(missing_ok=True)
        if job._process.poll() is None:
            os.kill(job._process.pid, signal.SIGTERM)


@pytest.mark.slurm
@pytest.mark.skipif(bool(MISSING), reason=WHY_SKIPPED)
@pytest.mark.parametrize("sent", ["USR2", "TERM"])
def test_slurm_runs_and_requeues_the_job(
    sent: str, slurm: Slurm, fake: FakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warned of the time limit; and preempted, when Slurm sends SIGTERM and requeues by itself."""
    pytest.importorskip("submitit")
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.env[name])
    held, started = fake.mark("vae-s0", "held"), fake.control / "vae-s0" / "there"
    executor = slurm_executor(fake.out, SlurmConfig(gpus=0, cpus=1, hours=1))
    job = submit(executor, fake.runs, fake.programs)["vae-s0"]
    _wait(started.exists, job)
    assert job.job_id in in_queue()
    assert not submit(executor, fake.runs, fake.programs)
    started.unlink()
    if sent == "USR2":  # what --signal=USR2@120 sends, to every process of the step
        slurm.call("scancel", "--signal=USR2", job.job_id)
    else:
        slurm.preempt()
    _wait(started.exists, job)
    assert fake.started() == ["vae-s0", "vae-s0"] and slurm.job(job.job_id)[1] == 1
    held.unlink()
    _wait(lambda: fake.states() == ["done"], job)
    assert slurm.job(job.job_id)[0] in ("RUNNING", "COMPLETING", "COMPLETED")


class _Named:
    """submitit's local executor, which gives its jobs no names."""

    def __init__(self, executor: Any) -> None:
        self.submit = executor.submit

    def update_parameters(self, name: str) -> None:
        pass


def _wait(condition: Any, job: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, (job.stdout(), job.stderr())
        time.sleep(0.02)
