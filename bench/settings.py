"""Settings of a measurement, one set for all modes, with defaults by device."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from train import launch
from train.launch import CPU_BATCH, GPU_BATCH
from train.step import Precision


@dataclass(frozen=True)
class Settings:
    """Options of the command, as they are written to the JSON file."""

    batch_size: int
    repeats: int  # rounds; each measures everything that is compared once
    steps: int  # consecutive steps that are timed together in each round
    compiled: bool  # also measure (model), or use (train), the compiled graph
    window: float = 3.0  # seconds of each round of side-by-side
    data: str | None = None  # packed folder; None: a synthetic set made for the measurement
    peers: bool = False  # also measure other tools on the same work
    batch_sizes: tuple[int, ...] = ()  # of the baselines of `train`; none: the batch size alone
    patches: tuple[int, ...] = (8192,)  # of the sets that are packed and read, one after the other
    plot: str | None = None  # picture of the baselines against the batch size

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.window > 0:
            raise ValueError(f"window is {self.window}; expected more than 0 seconds")
        if not self.patches or min(self.patches) < 1:
            raise ValueError(f"patches are {self.patches}; expected at least 1 each")
        if min(self.sizes) < 1:
            raise ValueError(f"batch_sizes are {self.batch_sizes}; expected at least 1 each")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes of the baselines."""
        return self.batch_sizes or (self.batch_size,)


# Two minutes per mode on two cores; on a GPU most of the time goes into compiling.
DEFAULTS = {
    "cpu": Settings(CPU_BATCH, repeats=7, steps=2, compiled=False),
    "cuda": Settings(GPU_BATCH, repeats=9, steps=30, compiled=True),
}


class Variant(NamedTuple):
    """Precision and compilation of the same training step."""

    precision: Precision
    compiled: bool
    cuda_graphs: bool = False

    def obstacle(self, device: torch.device, settings: Settings) -> str | None:
        """Say why this variant is not measured; None where it is."""
        if self.precision == "bf16" and not launch.has_bf16(device):
            return "no bfloat16 in this hardware"
        if self.compiled and not settings.compiled:
            return "needs --compiled"
        return None


VARIANTS = {
    "eager fp32": Variant("fp32", False),
    "eager bf16": Variant("bf16", False),
    "compiled bf16": Variant("bf16", True),
}
