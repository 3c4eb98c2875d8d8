"""How much is measured: the same settings for every mode, chosen by the device."""

from dataclasses import dataclass

from train.launch import CPU_BATCH, GPU_BATCH


@dataclass(frozen=True)
class Settings:
    batch_size: int
    repeats: int  # rounds over all that is compared
    steps: int  # in a row, timed together, each round
    compiled: bool  # also measure (model), or use (train), the compiled graph
    data: str | None = None  # packed folder; None: a synthetic set made for the measurement

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


# Two minutes a mode on two cores; on a GPU most of the time goes into compiling.
DEFAULTS = {
    "cpu": Settings(CPU_BATCH, repeats=7, steps=2, compiled=False),
    "cuda": Settings(GPU_BATCH, repeats=9, steps=30, compiled=True),
}
