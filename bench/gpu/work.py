"""The steps of a GPU run, each in a process: `python -m bench.gpu.work STEP ...`.

A step appends a line of JSON per record as soon as it has it, so that a time limit loses nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from bench import roofline
from bench.gpu.points import (
    COMPILED,
    DRY,
    FULL,
    GPU_VARIANTS,
    GRAPHS,
    Effort,
    Point,
    measure_kernels,
    measure_point,
    plan_points,
    release,
    streaming_trainer,
)
from bench.gpu.report import Embedded, Machine, SourceSpeed
from bench.modes import augment
from bench.modes.training import fitting_loaders, fixed_batch, speeds_by_source
from bench.patches import PatchSet, base_patches
from bench.records import Record
from bench.settings import Settings
from bench.steps import measure_parts
from common.machine import environment
from pipeline.index import open_dataset
from train.launch import start_accelerator

SPARE = 1.5  # another point is begun while this multiple of the slowest one's time is left


@dataclass(frozen=True)
class Work:
    """Files, time limit and size of the work of a step."""

    data: Path  # folder of the patches
    records: Path  # file to append to
    until: float  # on the monotonic clock
    dry: bool

    @property
    def effort(self) -> Effort:
        return DRY if self.dry else FULL

    @property
    def packed(self) -> Path:
        return self.data / "set" / "stored"

    @property
    def settings(self) -> Settings:
        """Settings for the modes of the bench, with compiled graphs."""
        steps, repeats = (1, 1) if self.dry else (20, 5)
        return Settings(self.effort.batch, repeats, steps, compiled=True, data=str(self.packed))

    @property
    def left(self) -> float:
        """Seconds until the time limit."""
        return self.until - time.monotonic()

    def start(self) -> Accelerator:
        """Make the accelerator; the dry steps run side by side, on a thread each."""
        accelerator = start_accelerator()
        if self.dry:
            torch.set_num_threads(1)
        return accelerator

    def add(self, records: Iterable[Record]) -> None:
        with self.records.open("ab") as file:
            for record in records:
                file.write(msgspec.json.encode(record) + b"\n")


def make_data(work: Work) -> None:
    """Pack synthetic patches: a few thousand are drawn, the others are shifted copies of them."""
    patches = work.effort.patches
    base, labels = base_patches(replace(work.settings, data=None, patches=(patches,)))
    work.data.mkdir(parents=True, exist_ok=True)
    PatchSet(work.data / "set", base, labels, patches).packed("stored")


def compile_graphs(work: Work, preset: str, batch: int) -> None:
    """Compile the graphs of a preset and batch size into the cache; nothing is recorded."""
    accelerator, dataset = work.start(), open_dataset(work.packed)
    for variant in (COMPILED, GRAPHS):
        trainer = streaming_trainer(preset, variant, batch, accelerator, dataset)
        trainer.update(fixed_batch(trainer))
        del trainer
        release(accelerator.device)
    if (preset, batch) == ("dvae", work.effort.batch):
        augment.measure(replace(work.settings, repeats=1, steps=1), accelerator)


def measure_machine(work: Work) -> None:
    """Record the machine, and its peak rates of matrix products and copies."""
    device = work.start().device
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    work.add([Machine(environment(), torch.version.cuda, memory)])
    work.add([roofline.peaks(device, work.settings.repeats)])


def measure_steps(work: Work, preset: str) -> None:
    """Time whole steps; points that no time is left for are recorded as not measured."""
    accelerator, dataset = work.start(), open_dataset(work.packed)
    longest = {True: 0.0, False: 0.0}  # seconds of a point, by whether it compiles
    for variant, batch in plan_points(preset, work.effort.sizes):
        compiled, left = GPU_VARIANTS[variant].compiled, work.left
        if left < SPARE * longest[compiled]:
            work.add([Point(preset, variant, batch, not_measured=f"{left:.0f} s were left")])
            continue
        began = time.monotonic()
        work.add([measure_point(preset, variant, batch, accelerator, dataset, work.effort)])
        longest[compiled] = max(longest[compiled], time.monotonic() - began)


def measure_storage(work: Work) -> None:
    """Time steps on batches from each storage, and on a batch that is on the device."""
    accelerator, dataset = work.start(), open_dataset(work.packed)
    batch = work.effort.batch
    for variant in (COMPILED, GRAPHS):
        trainer = streaming_trainer("dvae", variant, batch, accelerator, dataset)
        loaders, fixed = fitting_loaders(trainer), fixed_batch(trainer)
        speeds = speeds_by_source(trainer, "dvae", fixed, loaders, work.settings)
        work.add(
            SourceSpeed(variant, batch, s.source, s.images_per_s, s.step_over_fixed) for s in speeds
        )
        del trainer, loaders
        release(accelerator.device)


def measure_shares(work: Work) -> None:
    """Time the parts of an eager step, then D4 and each corruption beside compiled steps."""
    accelerator, dataset = work.start(), open_dataset(work.packed)
    trainer = streaming_trainer("dvae", "eager bf16", work.effort.batch, accelerator, dataset)
    loader = [*fitting_loaders(trainer).values()][-1]
    work.add(measure_parts(trainer, loader, "dvae", work.settings))
    del trainer, loader
    release(accelerator.device)
    work.add(augment.measure(work.settings, accelerator))


def measure_embedding(work: Work) -> None:
    """Time the whole path to embeddings on the disk, and encoding alone."""
    from bench.modes import embedding  # imports what evaluation needs

    repeats = 1 if work.dry else 2
    speeds = embedding.measure(replace(work.settings, repeats=repeats), work.start())
    work.add(Embedded(speed.name, speed.images_per_s) for speed in speeds)


def measure_profile(work: Work) -> None:
    """Profile a compiled step with and without CUDA graphs, and compare it with the peaks."""
    accelerator, dataset = work.start(), open_dataset(work.packed)
    for variant in (COMPILED, GRAPHS):
        trainer = streaming_trainer("dvae", variant, work.effort.batch, accelerator, dataset)
        fixed = fixed_batch(trainer)
        kernels = measure_kernels(trainer, fixed, "dvae", variant)
        work.add([kernels])
        if variant == COMPILED:
            rates = roofline.peaks(accelerator.device, 1).rates
            rate = kernels.batch_size / kernels.step_s
            work.add([roofline.measure(trainer, fixed, "dvae", rate, rates)])
        del trainer, fixed
        release(accelerator.device)


STEPS: dict[str, Callable[..., None]] = {
    "data": make_data,
    "compile": compile_graphs,
    "machine": measure_machine,
    "steps": measure_steps,
    "storage": measure_storage,
    "shares": measure_shares,
    "embedding": measure_embedding,
    "profile": measure_profile,
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu.work")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--preset")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="the time limit")
    parser.add_argument("--dry", action="store_true")
    options = vars(parser.parse_args(argv))
    until = time.monotonic() + options.pop("seconds")
    step = STEPS[options.pop("step")]
    step_options = {name: options.pop(name) for name in ("preset", "batch")}
    work = Work(until=until, **options)
    step(work, **{name: value for name, value in step_options.items() if value is not None})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
