"""`python -m train.sweep RECIPE`: the runs of an ablation, here or as jobs of Slurm.

The same command continues: runs that are done are skipped, interrupted and failed ones resumed.
Exit status: 0 all done (or submitted), 1 some failed or unusable data, 2 unusable arguments,
75 and 130 interrupted by a signal and by Ctrl-C, after the runs have saved.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from common.command import DONE, run_command
from common.errors import DataError
from common.locks import locked
from pipeline.index import open_dataset
from train.config import Config, as_json, differences
from train.data import find_data
from train.launch import CPU_IMAGES, GPU_IMAGES
from train.sweep import slurm as cluster
from train.sweep.local import run_here
from train.sweep.recipes import RECIPES
from train.sweep.runs import EVALUATE, PlannedRun, Programs, busy, plan_runs, write_settings
from train.sweep.slurm import SlurmConfig

SWEEPS = Path("data/sweeps")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is the same for all runs, and how they are run."""

    data: str | None = None  # data set, here or a URL; default as train/main.py
    out: Path | None = None  # default data/sweeps/RECIPE; recipes may share one, and its runs
    seeds: int = 3  # every arm with seeds 0 to SEEDS - 1
    images: int | None = None  # a run; default 100,000 on CPU, 20,000,000 on a GPU
    batch_size: int | None = None  # default 64 on CPU, 2048 on a GPU
    precision: Literal["bf16", "fp32"] | None = None
    evaluate: Literal["short", "full"] = "short"  # full: `python -m eval.main` on every run
    engine: Literal["local", "slurm"] = "local"
    jobs: int = 1  # local: runs side by side; cores are divided, GPUs taken in turn
    dry_run: bool = False  # print the plan, do nothing
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.engine == "slurm" and self.images is None:
            raise ValueError("--engine slurm needs --images: this machine may not be like the jobs")


def plan(recipe: str, options: Options) -> list[PlannedRun]:
    """The runs of a recipe. Raises ValueError for a recipe or settings that do not exist."""
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    images = options.images
    if images is None:
        images = GPU_IMAGES if torch.cuda.is_available() else CPU_IMAGES
    shared: dict[str, Any] = {"batch_size": options.batch_size, "precision": options.precision}
    out = options.out or SWEEPS / recipe
    return plan_runs(RECIPES[recipe](), options.seeds, images, out, **shared)


def describe(planned: list[PlannedRun], say: Say) -> None:
    """The plan: every arm with what sets it apart from `dvae`, every run with its state."""
    arms = {run.arm: run.config for run in planned if run.config.seed == 0}
    base = as_json(Config())
    for arm, config in arms.items():
        same = {name: as_json(config)[name] for name in ("seed", "images", "batch_size")}
        changed = differences({**base, **same, "precision": config.precision}, as_json(config))
        say(f"  {arm}: {config.images:,} images; {'; '.join(changed) or 'as dvae'}")
    total = sum(run.images for run in planned)
    say(f"{len(planned)} runs, {total:,} images, in {planned[0].out}")
    for number, run in enumerate(planned, 1):
        say(f"  [{number}/{len(planned)}] {run.name}: {run.state}")


def sweep(planned: list[PlannedRun], options: Options, programs: Programs, say: Say) -> int:
    """Do what is left of a plan; the exit status.

    Raises:
        DataError: the data or the sweep's folder cannot be used.
    """
    root, sentence = find_data(options.data)
    say(sentence)
    out = planned[0].out
    with sweep_lock(out):
        write_settings(planned, open_dataset(root))
        describe(planned, say)
        if options.engine == "slurm":
            executor = cluster.slurm_executor(planned[0].out, options.slurm)
            cluster.submit(executor, planned, programs, say)
            return DONE
        for run in planned:
            if pid := busy(run):
                raise DataError(
                    f"{run.folder} is being trained by process {pid}, left by a sweep that was "
                    "killed: wait for it to end, or end it"
                )
        return run_here(planned, options.jobs, programs, say)


def sweep_lock(out: Path) -> AbstractContextManager[None]:
    """Hold OUT/.lock, so that no two sweeps start one run."""
    path = out / ".lock"
    return locked(path, f"{path} is locked: another sweep works in {out}. Wait for it, or stop it")


_Recipe = Annotated[str, tyro.conf.arg(metavar="RECIPE", help=", ".join(RECIPES))]
_Options = Annotated[Options, tyro.conf.arg(name="")]


def _command(
    recipe: tyro.conf.Positional[_Recipe],
    options: _Options = Options(),
) -> Callable[[], int]:
    """The runs of an ablation, as many at a time as --jobs; the same command continues."""
    planned = plan(recipe, options)
    say: Say = lambda line: print(line, flush=True)  # noqa: E731

    def action() -> int:
        if options.dry_run:
            describe(planned, say)
            return DONE
        evaluate = EVALUATE if options.evaluate == "full" else None
        return sweep(planned, options, Programs(evaluate=evaluate), say)

    return action


def main() -> int:
    return run_command("train.sweep", _command)


if __name__ == "__main__":
    sys.exit(main())
