"""Options and plan of a sweep, and its execution."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from common.command import DONE
from common.console import log
from common.errors import DataError
from common.locks import held
from common.records import differences
from pipeline.index import open_dataset
from train.config import Config, as_json
from train.data import find_data
from train.launch import CPU_IMAGES, GPU_IMAGES
from train.sweep.local import run_here
from train.sweep.recipes import RECIPES
from train.sweep.runs import Programs, SweepRun, living_process, plan_runs, write_settings
from train.sweep.slurm import SlurmConfig, slurm_executor, submit

SWEEPS = Path("data/sweeps")


@dataclass(frozen=True)
class Options:
    """What all runs have in common, and how they are run."""

    data: str | None = None  # packed data set, a folder or a URL. Default: as train/main.py
    out: Path | None = None  # folder of the runs. Default: data/sweeps/RECIPE; recipes may share it
    seeds: int = 3  # number of seeds: every arm is trained with seeds 0 to SEEDS - 1
    images: int | None = None  # images per run. Default: 100,000 on CPU, 20,000,000 on a GPU
    batch_size: int | None = None  # images per step of every run. Default: 64, on a GPU 2048
    # precision of every run. Default: bf16 where the hardware has it
    precision: Literal["bf16", "fp32"] | None = None
    # evaluation of every run: the short one that training ends with, or also all of eval.main
    evaluate: Literal["short", "full"] = "short"
    engine: Literal["local", "slurm"] = "local"  # run on this machine, or submit one job per run
    threads: int | None = None  # CPU threads of each run. Default: the cores that it may use
    jobs: int = 1  # number of concurrent runs on this machine: they share its cores and GPUs
    dry_run: bool = False  # print the plan without starting any run
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.engine == "slurm" and self.images is None:
            raise ValueError("--engine slurm needs --images: this machine may not be like the jobs")


def plan(recipe: str, options: Options) -> list[SweepRun]:
    """List the runs of a recipe.

    Raises:
        ValueError: the recipe or a setting does not exist.
    """
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    images = options.images
    if images is None:
        images = GPU_IMAGES if torch.cuda.is_available() else CPU_IMAGES
    return plan_runs(
        RECIPES[recipe](),
        options.seeds,
        images,
        options.out or SWEEPS / recipe,
        batch_size=options.batch_size,
        precision=options.precision,
    )


def describe(runs: list[SweepRun]) -> None:
    """Log the plan: how every arm differs from `dvae`, and the state of every run."""
    arms = {run.arm: run.config for run in runs if run.config.seed == 0}
    base = as_json(Config())
    for arm, config in arms.items():
        values = as_json(config)
        same = {name: values[name] for name in ("seed", "images", "batch_size", "precision")}
        changes = differences({**base, **same}, values)
        log.info(f"  {arm}: {config.images:,} images; {'; '.join(changes) or 'as dvae'}")
    total = sum(run.images for run in runs)
    log.info(f"{len(runs)} runs, {total:,} images, in {runs[0].out}")
    for number, run in enumerate(runs, 1):
        log.info(f"  [{number}/{len(runs)}] {run.name}: {run.state}")


def sweep(runs: list[SweepRun], options: Options, programs: Programs) -> int:
    """Run what is left of a plan; return the exit status.

    Raises:
        DataError: the data or the sweep's folder cannot be used.
    """
    root, out = find_data(options.data), runs[0].out
    with sweep_lock(out):
        write_settings(runs, open_dataset(root))
        describe(runs)
        if options.engine == "slurm":
            submit(slurm_executor(out, options.slurm), runs, programs)
            return DONE
        for run in runs:
            if pid := living_process(run):
                raise DataError(
                    f"{run.folder} is being trained by process {pid}, left by a sweep that was "
                    "killed: wait for it to end, or end it"
                )
        return run_here(runs, options.jobs, programs)


def sweep_lock(out: Path) -> AbstractContextManager[None]:
    """Hold OUT/.lock, so that no two sweeps start one run."""
    return held(out, "sweeps in that folder")
