"""The runs of a sweep on disk, and the commands that remain to be run.

OUT/configs/NAME.json   the settings of a run, in the form of a run's own config.json
OUT/NAME                its folder; NAME is ARM-sSEED, and log.txt there is what it printed
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from common.errors import DataError
from common.files import remove_unfinished
from common.records import differences
from eval.results import RESULTS, load_results
from eval.run import DataRecord, RunRecord, load_metrics, load_record, load_status
from pipeline.index import Dataset
from train.config import Config, as_json
from train.prepare import OUTPUT, identity, write_record
from train.sweep.recipes import Arm

TRAIN = (sys.executable, str(Path(__file__).parents[1] / "main.py"))
EVALUATE = (sys.executable, "-m", "eval.main")


@dataclass(frozen=True)
class Programs:
    """First words of the commands that train and evaluate a run."""

    train: tuple[str, ...] = TRAIN
    evaluate: tuple[str, ...] | None = None  # None: the short evaluation of training is enough
    threads: int | None = None  # of each command; None: it decides by itself

    @property
    def options(self) -> tuple[str, ...]:
        """Options that both commands take."""
        return () if self.threads is None else ("--threads", str(self.threads))


class Command(NamedTuple):
    """A command on a run, in a process of its own."""

    run: str  # its name
    argv: tuple[str, ...]
    output: Path  # what the process prints is appended there


@dataclass(frozen=True)
class SweepRun:
    """An arm with a seed."""

    arm: str
    config: Config  # its budget in images is set
    out: Path  # folder of the sweep, absolute
    first: bool  # of its architecture and normalisation: the baselines are evaluated with it

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.config.seed}"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    @property
    def settings(self) -> Path:
        return self.out / "configs" / f"{self.name}.json"

    @property
    def images(self) -> int:
        assert self.config.images is not None
        return self.config.images

    @property
    def state(self) -> str:
        """What status.json says: running, done, failed, interrupted; or to do."""
        status = load_status(self.folder)
        return status.status if status else "to do"

    def images_seen(self) -> int:
        """Return the images seen: of the last line of metrics.jsonl, or the budget if done."""
        if self.state == "done":
            return self.images
        lines = load_metrics(self.folder)
        return lines[-1].images if lines else 0


def plan_runs(arms: list[Arm], seeds: int, images: int, out: Path, **shared: Any) -> list[SweepRun]:
    """List every arm with seeds 0 to seeds - 1, all arms of a seed before the next seed.

    Args:
        images: the budget of an arm whose share is 1.
        shared: settings of all runs, by name of the field of `Config`.
    """
    runs: list[SweepRun] = []
    for seed in range(seeds):
        for arm in arms:
            budget = round(images * arm.budget)
            config = replace(arm.config, seed=seed, images=budget, **shared)
            kind = config.model, config.normalise
            first = all(kind != (run.config.model, run.config.normalise) for run in runs)
            runs.append(SweepRun(arm.name, config, out.resolve(), first))
    return runs


def write_settings(runs: Iterable[SweepRun], dataset: Dataset) -> None:
    """Write what each run of a sweep, whose lock is held, is started from.

    Raises:
        DataError: the folder holds a run of that name with other settings or data.
    """
    data = DataRecord(str(dataset.root.resolve()), dataset.hash)
    for run in runs:
        remove_unfinished(run.settings.parent, run.name)
        config = as_json(run.config)
        if not run.settings.is_file():
            write_record(run.settings, RunRecord(run.arm, config, data))
            continue
        before = load_record(run.settings)
        then = identity(before.config, before.data.hash)
        if lines := differences(then, identity(config, data.hash)):
            raise DataError(
                f"{run.settings} is of a sweep with other settings or data:\n  "
                + "\n  ".join(lines)
                + "\nUse its settings again, or choose another --out"
            )


def training(run: SweepRun, programs: Programs) -> Command | None:
    """Return the command of the first stage, training with its short evaluation; None if done."""
    if run.state == "done":
        return None
    places = (str(run.settings), "--out", str(run.folder))
    argv = (*programs.train, *places, "--resume", *programs.options)
    return Command(run.name, argv, run.folder / OUTPUT)


def evaluation(run: SweepRun, programs: Programs) -> Command | None:
    """Return the command of the second stage, full evaluation, or None.

    The baselines are evaluated once per architecture.
    """
    if programs.evaluate is None or run.state != "done" or fully_evaluated(run):
        return None
    no_baselines = () if run.first else ("--baselines",)
    argv = (*programs.evaluate, str(run.folder), *no_baselines, *programs.options)
    return Command(run.name, argv, run.folder / OUTPUT)


def start(
    command: Command, cores: frozenset[int] = frozenset(), environment: Mapping[str, str] = {}
) -> subprocess.Popen[bytes]:
    """Start a command in its own session, so that it gets no signal from the terminal.

    Args:
        cores: the only cores that it sees; all where empty.
    """
    command.output.parent.mkdir(parents=True, exist_ok=True)
    with open(command.output, "ab") as output, _inherited(cores):
        return subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


@contextmanager
def _inherited(cores: frozenset[int]) -> Iterator[None]:
    """Restrict this thread to some cores, which a process that is started inside inherits."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def fully_evaluated(run: SweepRun) -> bool:
    """Return whether results.json is of the full evaluation; without probes both are the same."""
    if not (run.folder / RESULTS).is_file():
        return False
    results = load_results(run.folder)
    return results.robustness is not None or not results.probe


def living_process(run: SweepRun) -> int | None:
    """Return the id of a process on this machine that trains the run, left by a killed sweep."""
    status = load_status(run.folder)
    if status is None or status.status != "running":
        return None
    try:
        argv = psutil.Process(status.pid).cmdline()
    except psutil.Error:
        return None
    return status.pid if str(run.folder) in argv else None


def failure(run: SweepRun, pid: int) -> str:
    """Return why process `pid` failed: the error in status.json, or its last line of output."""
    status = load_status(run.folder)
    if status and status.status == "failed" and status.pid == pid and status.error:
        return status.error
    path = run.folder / OUTPUT
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")
