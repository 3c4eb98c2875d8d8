"""Options of a sweep. Without torch: the command line is parsed from them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class SlurmConfig:
    """What each job asks Slurm for."""

    partition: str | None = None  # partition of the jobs. Default: that of the cluster
    account: str | None = None  # account that the jobs are charged to. Default: the user's
    gpus: int = 1  # GPUs per job; 0 trains on the CPU
    cpus: int = 8  # CPU cores per job
    hours: float = 8.0  # time limit of a job; a run that needs longer is requeued


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
