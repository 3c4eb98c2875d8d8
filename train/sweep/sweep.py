"""The plan of a sweep, and its execution."""

from contextlib import AbstractContextManager
from pathlib import Path

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
from train.sweep.options import Options
from train.sweep.recipes import RECIPES
from train.sweep.runs import Programs, SweepRun, living_process, plan_runs, write_settings
from train.sweep.slurm import slurm_executor, submit

SWEEPS = Path("data/sweeps")


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
