"""Training steps on a batch that is on the device: images/s, memory, compile time, and kernels."""

import gc
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from msgspec import Struct
from torch._C._autograd import DeviceType
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from bench.modes.training import fixed_batch
from bench.records import Record, Spread
from bench.settings import VARIANTS, Settings, Variant
from bench.steps import make_trainer
from bench.timing import timed
from pipeline.index import Dataset
from pipeline.loader import Batch
from train.loop import Trainer

COMPILED, GRAPHS = "compiled bf16", "compiled bf16, CUDA graphs"
GPU_VARIANTS = {**VARIANTS, GRAPHS: Variant("bf16", True, cuda_graphs=True)}
WARMUP = 5  # steps; CUDA graphs are recorded in the second and replayed from the third on
TOP = 30  # kernels in the JSON file, the slowest


class Effort(NamedTuple):
    """How much is measured."""

    batch: int  # images per step, except for the points
    sizes: tuple[int, ...]  # batch sizes of the points, the most informative first
    repeats: int
    seconds: float  # approximate length of one repeat
    patches: int


FULL = Effort(2048, (2048, 8192, 512, 16384), repeats=5, seconds=0.3, patches=204_800)
DRY = Effort(16, (16,), repeats=1, seconds=0.0, patches=64)


class Point(Record, tag="point", frozen=True):
    """Training steps of one preset, variant and batch size."""

    preset: str
    variant: str
    batch_size: int
    images_per_s: Spread | None = None
    not_measured: str | None = None  # why there are no numbers
    step_s: Spread | None = None
    host_s: float | None = None  # until the host has queued a step; the device may take longer
    first_step_s: float | None = None  # compilation included
    peak_bytes: int | None = None  # of tensors in a step, the weights and one batch included
    graph_cache_hits: int | None = None  # graphs taken from the compiler's cache
    cudagraph_skips: int | None = None  # graphs that torch could not record


class Kernel(Struct, frozen=True):
    """The launches of one kernel in a step, and their total seconds."""

    name: str
    launches: int
    seconds: float


class Kernels(Record, tag="kernels", frozen=True):
    """The kernels of a step, the slowest first; on a CPU its operations."""

    preset: str
    variant: str
    batch_size: int
    step_s: float  # without the profiler
    busy_s: float  # of all kernels and copies
    launches: int
    host_launches: int  # calls of the host that start a kernel, a graph or a copy
    top: list[Kernel]


def streaming_trainer(
    preset: str, variant: str, batch: int, accelerator: Accelerator, dataset: Dataset
) -> Trainer:
    """Make a trainer whose data is streamed, so that making it takes no time."""
    precision, compiled, cuda_graphs = GPU_VARIANTS[variant]
    torch.compiler.reset()
    return make_trainer(
        preset,
        accelerator,
        dataset,
        batch_size=batch,
        precision=precision,
        compile=compiled,
        cuda_graphs=cuda_graphs,
        storage="stream",
    )


def measure_point(
    preset: str,
    variant: str,
    batch: int,
    accelerator: Accelerator,
    dataset: Dataset,
    effort: Effort,
) -> Point:
    """Time one point; a failure is recorded with its reason, so that the others are measured."""
    settings = Settings(batch, effort.repeats, steps=1, compiled=True)
    if reason := GPU_VARIANTS[variant].obstacle(accelerator.device, settings):
        return Point(preset, variant, batch, not_measured=reason)
    try:
        trainer = streaming_trainer(preset, variant, batch, accelerator, dataset)
        return _timed_point(trainer, fixed_batch(trainer), preset, variant, effort)
    except Exception as error:  # out of memory, or a compiler that gives up
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0]}"
        return Point(preset, variant, batch, not_measured=reason)
    finally:
        release(accelerator.device)


def release(device: torch.device) -> None:
    """Free the device memory of trainers that are no longer used."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _timed_point(
    trainer: Trainer, batch: Batch, preset: str, variant: str, effort: Effort
) -> Point:
    device, size = trainer.device, len(batch.images)
    cuda = device.type == "cuda"
    counters.clear()

    def step() -> None:
        trainer.update(batch)

    first = timed(step, 1, device)
    for _ in range(WARMUP):
        step()
    estimate = timed(step, 2, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    steps = min(200, max(2, round(effort.seconds / estimate)))
    seconds = [timed(step, steps, device) for _ in range(effort.repeats)]
    if cuda:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    step()
    host = time.perf_counter() - began
    if bad := trainer.sums.bad():  # waits for the device
        raise ValueError(f"not finite after {bad[0]} images: {', '.join(bad[1])}")
    return Point(
        preset,
        variant,
        size,
        images_per_s=Spread.of([size / s for s in seconds]),
        step_s=Spread.of(seconds),
        host_s=host,
        first_step_s=first,
        peak_bytes=torch.cuda.max_memory_allocated(device) if cuda else None,
        graph_cache_hits=counters["inductor"]["fxgraph_cache_hit"],
        cudagraph_skips=counters["inductor"]["cudagraph_skips"],
    )


def measure_kernels(trainer: Trainer, batch: Batch, preset: str, variant: str) -> Kernels:
    """Profile one training step, after warm-up."""
    device = trainer.device
    cuda = device.type == "cuda"
    for _ in range(WARMUP):
        trainer.update(batch)
    seconds = timed(lambda: trainer.update(batch), WARMUP, device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for _ in range(2):  # the first one starts the profiler
        with profile(activities=activities) as profiler:
            trainer.update(batch)
            if cuda:
                torch.cuda.synchronize(device)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    times: dict[str, list[float]] = defaultdict(list)
    host = 0
    for event in profiler.events() or []:
        if event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy")):
            host += 1
        elif event.device_type == kind and not event.is_user_annotation:
            spent = event.device_time if cuda else event.self_cpu_time_total
            times[event.name].append(spent / 1e6)
    kernels = [Kernel(name[:160], len(spent), sum(spent)) for name, spent in times.items()]
    kernels.sort(key=lambda kernel: -kernel.seconds)
    return Kernels(
        preset,
        variant,
        len(batch.images),
        step_s=seconds,
        busy_s=sum(kernel.seconds for kernel in kernels),
        launches=sum(kernel.launches for kernel in kernels),
        host_launches=host,
        top=kernels[:TOP],
    )


def plan_points(preset: str, sizes: Sequence[int]) -> list[tuple[str, int]]:
    """List variants and batch sizes in the order in which they are measured.

    `dvae` in every variant at every size; the others at the first two, and not in fp32.
    """
    if preset == "dvae":
        return [(variant, size) for size in sizes for variant in GPU_VARIANTS]
    variants = (variant for variant in reversed(GPU_VARIANTS) if variant != "eager fp32")
    return [(variant, size) for variant in variants for size in sizes[:1]] + [
        (variant, size) for variant in (GRAPHS, COMPILED) for size in sizes[1:2]
    ]
