"""How much is measured: the same settings for every mode, chosen by the device."""

from dataclasses import dataclass

from train.launch import CPU_BATCH, GPU_BATCH


@dataclass(frozen=True)
class Settings:
    batch_size: int
    repeats: int  # rounds over all that is compared
    steps: int  # in a row, timed together, each round
    compiled: bool  # also measure (model), or use (train), the compiled graph
    window: float = 3.0  # seconds that runs side by side are watched, each round
    data: str | None = None  # packed folder; None: a synthetic set made for the measurement
    peers: bool = False  # also measure other tools on the same work
    batch_sizes: tuple[int, ...] = ()  # of the ladder of `train`; none: the batch size alone
    patches: tuple[int, ...] = (8192,)  # of the sets that are packed and read, one after the other
    plot: str | None = None  # picture of the ladder against the batch size

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
        return self.batch_sizes or (self.batch_size,)


# Two minutes a mode on two cores; on a GPU most of the time goes into compiling.
DEFAULTS = {
    "cpu": Settings(CPU_BATCH, repeats=7, steps=2, compiled=False),
    "cuda": Settings(GPU_BATCH, repeats=9, steps=30, compiled=True),
}
