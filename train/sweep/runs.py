"""A sweep on the disk: the runs that a recipe stands for, and what their folders say of them.

OUT/configs/NAME.json   the settings of a run, in the form of a run's own config.json
OUT/NAME                its folder; NAME is ARM-sSEED, and log.txt there is what it printed
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from common.errors import DataError
from common.files import read_json, write_atomically
from eval import run as runs
from eval.results import RESULTS, load_results
from pipeline.index import Dataset
from train.arguments import recorded
from train.config import Config, as_json, differences
from train.prepare import LOG
from train.sweep.children import Task
from train.sweep.recipes import Arm

TRAIN = (sys.executable, str(Path(__file__).parents[1] / "main.py"))
EVALUATE = (sys.executable, "-m", "eval.main")


@dataclass(frozen=True)
class Programs:
    """The beginnings of the commands; of both stages, or of training alone."""

    train: tuple[str, ...] = TRAIN
    evaluate: tuple[str, ...] | None = None  # None: the short evaluation of training is enough


@dataclass(frozen=True)
class PlannedRun:
    arm: str
    config: Config  # its budget in images is set
    out: Path  # of the sweep, absolute
    first: bool  # of its architecture: the baselines are evaluated with it

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

    def status(self) -> dict[str, Any]:
        """RUN/status.json; empty where the run has not begun."""
        path = self.folder / "status.json"
        return read_json(path) if path.is_file() else {}

    @property
    def state(self) -> str:
        """What status.json says: running, done, failed, interrupted; or to do."""
        return str(self.status().get("status", "to do"))

    def images_seen(self) -> int:
        """As far as its log goes; the whole budget of a run that is done."""
        if self.state == "done":
            return self.images
        lines = runs.load_metrics(self.folder)
        return lines[-1].images if lines else 0


def plan_runs(
    arms: list[Arm], seeds: int, images: int, out: Path, **shared: Any
) -> list[PlannedRun]:
    """Every arm with seeds 0 to seeds - 1, all arms of a seed before the next seed.

    Args:
        images: the budget of an arm whose share is 1.
        shared: settings of all runs, by name of the field of `Config`.
    """
    planned: list[PlannedRun] = []
    for seed in range(seeds):
        for arm in arms:
            budget = round(images * arm.budget)
            config = replace(arm.config, seed=seed, images=budget, **shared)
            first = all(config.model != run.config.model for run in planned)
            planned.append(PlannedRun(arm.name, config, out.resolve(), first))
    return planned


def write_settings(planned: Iterable[PlannedRun], dataset: Dataset) -> None:
    """Write what each run is started from.

    Raises:
        DataError: the folder holds a run of that name with other settings or data.
    """
    data = {"root": str(dataset.root.resolve()), "hash": dataset.hash}
    for run in planned:
        facts = {"preset": run.arm, "config": as_json(run.config), "data": data}
        if run.settings.is_file():
            _require_same(run, facts)
        else:
            write_atomically(run.settings, json.dumps(facts, indent=1).encode())


def _require_same(run: PlannedRun, facts: dict[str, Any]) -> None:
    before = recorded(run.settings)
    then, now = (
        {"config": each["config"], "data": {"hash": each["data"]["hash"]}}
        for each in (before, facts)
    )
    if lines := differences(then, now):
        raise DataError(
            f"{run.settings} is of a sweep with other settings or data:\n  "
            + "\n  ".join(lines)
            + "\nUse its settings again, or choose another --out"
        )


def training(run: PlannedRun, programs: Programs) -> Task | None:
    """What is left of the first stage, training with its short evaluation, or None."""
    if run.state == "done":
        return None
    command = (*programs.train, str(run.settings), "--out", str(run.folder), "--resume")
    return Task(run.name, command, run.folder / LOG)


def evaluation(run: PlannedRun, programs: Programs) -> Task | None:
    """What is left of the second stage, the full evaluation; baselines once an architecture."""
    if programs.evaluate is None or run.state != "done" or fully_evaluated(run):
        return None
    fewer = () if run.first else ("--baselines",)
    return Task(run.name, (*programs.evaluate, str(run.folder), *fewer), run.folder / LOG)


def fully_evaluated(run: PlannedRun) -> bool:
    """Whether results.json is of the full evaluation; without probes the short one is it."""
    if not (run.folder / RESULTS).is_file():
        return False
    results = load_results(run.folder)
    return results.robustness is not None or not results.probe


def busy(run: PlannedRun) -> int | None:
    """The process on this machine that trains the run already: one that outlived its sweep."""
    status = run.status()
    if status.get("status") != "running" or type(status.get("pid")) is not int:
        return None
    try:
        words = psutil.Process(status["pid"]).cmdline()
    except psutil.Error:
        return None
    return int(status["pid"]) if str(run.folder) in words else None


def failure(run: PlannedRun, pid: int) -> str:
    """Why the process `pid` failed: its word in status.json, or the last line that it printed."""
    status = run.status()
    if status.get("status") == "failed" and status.get("pid") == pid and status.get("error"):
        return str(status["error"])
    path = run.folder / LOG
    lines = path.read_text(errors="replace").split("\n") if path.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")
