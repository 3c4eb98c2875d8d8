"""Sweeps on Slurm through submitit: one job a run, preempted, requeued and continued.

OUT/slurm holds submitit's scripts, logs and job files (pickles of its own, written here and read
by the job; nothing else reads them), and jobs.json, the number of the job of each run.
"""

import getpass
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import read_json, write_atomically
from train.sweep.children import POLL_S, Task, start
from train.sweep.runs import PlannedRun, Programs, evaluation, failure, training

SAVE_S = 120  # between the signal and the end of a job, for the step to end and the run to save
REQUEUES = 10_000  # submitit counts down at every time limit: a run takes as many as it needs
PREEMPTION = signal.SIGUSR2  # submitit's

Say = Callable[[str], None]


@dataclass(frozen=True)
class SlurmConfig:
    """What each job asks for."""

    partition: str | None = None
    account: str | None = None
    gpus: int = 1  # 0: train on the CPU
    cpus: int = 8
    hours: float = 8.0  # a run that needs longer is requeued


class RunJob:
    """All that is left of a run, as submitit calls it. Raises where the run does not get done."""

    def __init__(self, run: PlannedRun, programs: Programs) -> None:
        self.run, self.programs = run, programs
        self.child: int | None = None

    def __call__(self) -> None:
        for stage in (training, evaluation):
            if task := stage(self.run, self.programs):
                process = self._start(task)
                # not wait(): it holds a lock that `checkpoint`, a signal's handler, would need
                while process.poll() is None:
                    time.sleep(POLL_S)
                if stage(self.run, self.programs) is not None:
                    raise RuntimeError(f"{self.run.name}: {failure(self.run, process.pid)}")

    def _start(self, task: Task) -> subprocess.Popen[bytes]:
        """Slurm sends its warning to every process of a job: it must not end the child."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {PREEMPTION})
        try:
            process = start(task)
            self.child = process.pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {PREEMPTION})
        return process

    def checkpoint(self) -> Any:
        """Called upon the warning: the child saves and ends, and the same job is queued again."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.child, signal.SIGTERM)
                os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(RunJob(self.run, self.programs))


def slurm_executor(out: Path, config: SlurmConfig) -> Any:
    """submitit's executor.

    Raises:
        DataError: submitit is not installed, or there is no Slurm here.
    """
    try:
        import submitit
    except ImportError:
        raise DataError(
            "--engine slurm needs submitit: install the extra, uv sync --extra slurm "
            "(or pip install 'submitit>=1.5')"
        ) from None
    try:
        executor = submitit.AutoExecutor(
            folder=out / "slurm" / "%j", cluster="slurm", slurm_max_num_timeout=REQUEUES
        )
    except RuntimeError as error:
        raise DataError(f"{error} Start the sweep on a machine of the cluster") from None
    executor.update_parameters(**_parameters(config))
    return executor


def _parameters(config: SlurmConfig) -> dict[str, Any]:
    """Of sbatch, in submitit's words; what is None or 0 is left to the cluster."""
    named = {
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "gpus_per_node": config.gpus,
    }
    return {
        **{name: value for name, value in named.items() if value},
        "cpus_per_task": config.cpus,
        "timeout_min": max(1, round(60 * config.hours)),
        "slurm_signal_delay_s": SAVE_S,
        "slurm_additional_parameters": {"requeue": True},
    }


def submit(
    executor: Any, planned: Iterable[PlannedRun], programs: Programs, say: Say,
    queued: Callable[[], set[str]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Submit a job for every run that is not done and has none; the new jobs by name of the run."""
    submitted: dict[str, Any] = {}
    alive = (queued or in_queue)()
    for run in planned:
        path = run.out / "slurm" / "jobs.json"
        jobs = read_json(path) if path.is_file() else {}
        if training(run, programs) is None and evaluation(run, programs) is None:
            say(f"{run.name}: done")
        elif jobs.get(run.name) in alive:
            say(f"{run.name}: {run.state}, job {jobs[run.name]}")
        else:
            executor.update_parameters(name=f"{run.out.name}-{run.name}")
            job = executor.submit(RunJob(run, programs))
            write_atomically(path, json.dumps({**jobs, run.name: job.job_id}).encode())
            say(f"{run.name}: {run.state}, submitted as job {job.job_id}")
            submitted[run.name] = job
    return submitted


def in_queue() -> set[str]:
    """The numbers of this user's jobs that wait or run.

    Raises:
        DataError: squeue cannot be asked.
    """
    command = ["squeue", "--noheader", "--user", getpass.getuser(), "--format", "%A"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"squeue does not answer ({error}): is this a machine of Slurm?") from None
    return set(done.stdout.split())
