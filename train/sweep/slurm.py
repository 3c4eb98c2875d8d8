"""Sweeps on Slurm through submitit: one job per run, preempted, requeued and continued.

OUT/slurm holds submitit's scripts, logs and job files (pickles of its own, written here and read
by the job; nothing else reads them), and jobs.json, the job number of each run.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from common.console import log
from common.errors import DataError
from common.files import read_json, write_atomically
from train.sweep.options import SlurmConfig
from train.sweep.runs import Programs, SweepRun, evaluation, failure, start, training

POLL_S = 0.1
SAVE_S = 120  # between the signal and the end of a job, for the step to end and the run to save
REQUEUES = 10_000  # submitit counts down at every time limit: a run takes as many as it needs
PREEMPTION = signal.SIGUSR2  # submitit's


class Job(Protocol):
    """A job of submitit, as far as it is used here."""

    @property
    def job_id(self) -> str: ...


class RunJob:
    """What remains of a run, as a callable for submitit.

    Raises:
        RuntimeError: training or evaluation ended without completing the run.
    """

    def __init__(self, run: SweepRun, programs: Programs) -> None:
        self.run, self.programs = run, programs
        self.child: int | None = None

    def __call__(self) -> None:
        for stage in (training, evaluation):
            if command := stage(self.run, self.programs):
                # it ignores Slurm's warning, which every process of a job gets
                signal.pthread_sigmask(signal.SIG_BLOCK, {PREEMPTION})
                try:
                    process = start(command)
                    self.child = process.pid
                finally:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {PREEMPTION})
                # not wait(): it holds a lock that `checkpoint`, a signal's handler, would need
                while process.poll() is None:
                    time.sleep(POLL_S)
                if stage(self.run, self.programs) is not None:
                    raise RuntimeError(f"{self.run.name}: {failure(self.run, process.pid)}")

    def checkpoint(self) -> Any:
        """Let the child save and end, and requeue the job; called on the warning signal."""
        from submitit.helpers import DelayedSubmission

        if self.child is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.child, signal.SIGTERM)
                os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(RunJob(self.run, self.programs))


def slurm_executor(out: Path, config: SlurmConfig) -> Any:
    """Make submitit's executor.

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
    optional = {
        "slurm_partition": config.partition,
        "slurm_account": config.account,
        "gpus_per_node": config.gpus,
    }
    executor.update_parameters(
        **{name: value for name, value in optional.items() if value},  # others: the cluster's
        cpus_per_task=config.cpus,
        timeout_min=max(1, round(60 * config.hours)),
        slurm_signal_delay_s=SAVE_S,
        slurm_additional_parameters={"requeue": True},
    )
    return executor


def submit(
    executor: Any,
    runs: Iterable[SweepRun],
    programs: Programs,
    queued: Callable[[], set[str]] | None = None,
) -> dict[str, Job]:
    """Submit a job for every run that is not done and has none.

    Args:
        queued: lists the numbers of the jobs that wait or run, as `in_queue`, which is the default.

    Returns:
        The new jobs by name of the run.
    """
    submitted: dict[str, Job] = {}
    alive = (queued or in_queue)()
    for run in runs:
        path = run.out / "slurm" / "jobs.json"
        jobs = read_json(path) if path.is_file() else {}
        if training(run, programs) is None and evaluation(run, programs) is None:
            log.info(f"{run.name}: done")
        elif jobs.get(run.name) in alive:
            log.info(f"{run.name}: {run.state}, job {jobs[run.name]}")
        else:
            executor.update_parameters(name=f"{run.out.name}-{run.name}")
            job = executor.submit(RunJob(run, programs))
            write_atomically(path, json.dumps({**jobs, run.name: job.job_id}).encode())
            log.info(f"{run.name}: {run.state}, submitted as job {job.job_id}")
            submitted[run.name] = job
    return submitted


def in_queue() -> set[str]:
    """List the numbers of this user's jobs that wait or run.

    Raises:
        DataError: squeue cannot be asked.
    """
    command = ["squeue", "--noheader", "--user", str(os.getuid()), "--format", "%A"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise DataError(f"squeue does not answer ({error}): is this a machine of Slurm?") from None
    return set(done.stdout.split())
