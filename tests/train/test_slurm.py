"""The batch scripts in a real Slurm of two nodes, which `local_slurm.sh` starts on this machine."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train.test_launch import SHORT, newest, status
from train import checkpoint as state

ROOT = Path(__file__).resolve().parents[2]
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
ABSENT = [n for n in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(n, path=SBIN)]
TIMEOUT_S = 400
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(ABSENT), reason=f"no {', '.join(ABSENT)}: see docs/clusters.md"),
]


class Slurm:
    """Commands of the local Slurm, and training jobs on `data`."""

    def __init__(self, conf: str, data: Path) -> None:
        here = str(Path(sys.executable).parent)
        self.env = {**os.environ, "PATH": os.pathsep.join([here, SBIN]), "SLURM_CONF": conf}
        self.data = data

    def call(self, *command: str, **env: str) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env={**self.env, **env}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, out: Path, *more: str) -> str:
        """The job's id; its messages go to OUT.log."""
        command = ["sbatch", "--parsable", "--output", f"{out}.log", f"train/slurm/{script}"]
        return self.call(*command, "dvae", "--data", str(self.data), *SHORT, *more, OUT=str(out))

    def job(self, number: str) -> tuple[str, int]:
        """State and restarts."""
        text = self.call("scontrol", "show", "job", number)
        state_of, restarts = re.search(r"JobState=(\w+)", text), re.search(r"Restarts=(\d+)", text)
        assert state_of and restarts, text
        return state_of[1], int(restarts[1])

    def wait(self, number: str, out: Path) -> tuple[str, int]:
        """State and restarts once the job has ended for good."""
        deadline = time.monotonic() + TIMEOUT_S
        while (found := self.job(number))[0] not in ENDED:
            assert time.monotonic() < deadline, log(out)
            time.sleep(0.5)
        return found

    def wait_for_checkpoint(self, number: str, out: Path) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not list((out / "checkpoints").glob("0*")):
            assert self.job(number)[0] not in ENDED and time.monotonic() < deadline, log(out)
            time.sleep(0.02)


def log(out: Path) -> str:
    path = Path(f"{out}.log")
    return path.read_text() if path.exists() else "no log"


@pytest.fixture(scope="module")
def slurm(small_dataset: Path) -> Iterator[Slurm]:
    script = str(ROOT / "tests/helpers/local_slurm.sh")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # the path of a socket must be short
    started = subprocess.run([script, "start", str(folder)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield Slurm(started.stdout.strip(), small_dataset)
    finally:
        subprocess.run([script, "stop", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def reference(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """(a) A job that is left alone."""
    out = tmp_path_factory.mktemp("slurm") / "run"
    assert slurm.wait(slurm.submit("one_node.sbatch", out), out) == ("COMPLETED", 0), log(out)
    assert status(out) == "done" and (out / "results.json").is_file()
    return out


@pytest.mark.parametrize("how", ["time limit", "preempted"])
def test_an_interrupted_job_is_requeued_and_ends_identical(
    how: str, slurm: Slurm, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    if how == "time limit":  # what --signal=B:USR1@120 sends
        slurm.call("scancel", "--batch", "--signal=USR1", number)
    else:
        slurm.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true",
                   "--output=/dev/null")  # fmt: skip
    assert slurm.wait(number, out) == ("COMPLETED", 1), log(out)
    assert status(out) == "done" and "resuming after" in log(out)
    a, b = newest(reference), newest(out)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    slurm.call("scancel", number)
    assert slurm.wait(number, out) == ("CANCELLED", 0), log(out)


def test_a_failing_job_fails(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("one_node.sbatch", out, "--data", str(tmp_path / "nowhere"))
    assert slurm.wait(number, out) == ("FAILED", 0)
    assert "nowhere does not exist" in log(out)


def test_two_nodes_train_and_continue_after_an_interruption(slurm: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "run"
    number = slurm.submit("multi_node.sbatch", out)
    slurm.wait_for_checkpoint(number, out)
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    assert slurm.wait(number, out) == ("COMPLETED", 1), log(out)
    assert status(out) == "done" and "resuming after" in log(out)
    checkpoint = state.load_newest(out, print)
    assert checkpoint is not None and checkpoint.meta["processes"] == 2
