"""A real Slurm of two nodes, which `local_slurm.sh` starts on this machine."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.training import SHORT_RUN

ROOT = Path(__file__).resolve().parents[2]
SEARCH_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH_PATH)]
WHY_SKIPPED = f"no {', '.join(MISSING)}: see docs/clusters.md"
TIMEOUT_S = 400
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Slurm:
    """Commands of the local Slurm, and training jobs on `data`."""

    def __init__(self, conf: str, data: Path) -> None:
        here = str(Path(sys.executable).parent)
        self.env = {**os.environ, "PATH": os.pathsep.join([here, SEARCH_PATH]), "SLURM_CONF": conf}
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
        return self.call(
            *command, "dvae", "--data", str(self.data), *SHORT_RUN, *more, OUT=str(out)
        )

    def job(self, number: str) -> tuple[str, int]:
        """State and restarts."""
        text = self.call("scontrol", "show", "job", number)
        state_of, restarts = re.search(r"JobState=(\w+)", text), re.search(r"Restarts=(\d+)", text)
        assert state_of and restarts, text
        return state_of[1], int(restarts[1])

    def wait(self, number: str, out: Path) -> tuple[str, int]:
        """State and restarts once the job has ended for good."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.job(number)[0] not in ENDED:
            assert time.monotonic() < deadline, job_output(out)
            time.sleep(0.5)
        return self.job(number)

    def preempt(self) -> None:
        """Submit a job of higher priority that needs the whole cluster."""
        options = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
        self.call("sbatch", *options, "--wrap=true")

    def wait_for_checkpoint(self, number: str, out: Path) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not list((out / "checkpoints").glob("0*")):
            assert self.job(number)[0] not in ENDED and time.monotonic() < deadline, job_output(out)
            time.sleep(0.02)


def job_output(out: Path) -> str:
    path = Path(f"{out}.log")
    return path.read_text() if path.exists() else "no log"
