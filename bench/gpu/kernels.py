"""The kernels of one training step: time, launches, and bytes where the profiler has them."""

from collections import defaultdict

import torch
from msgspec import Struct
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.points import WARMUP
from bench.records import Record
from bench.timing import timed
from pipeline.loader import Batch
from train.loop import Trainer

TOP = 30


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
