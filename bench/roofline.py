"""How near a step comes to the arithmetic and the memory bandwidth of the machine.

The peaks are what this machine reached in the same run, not what its maker states: a product of
large square matrices in each precision, and a copy of a block that no cache holds. The caches of a
CPU hold much of a small batch: there a share of the memory bandwidth can pass 100 %. Bytes are
counted, not timed, and exact for the step as it runs without a compiler.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench import counts
from bench.records import NotMeasured, Record, Spread
from bench.steps import TrainRecord, training_of
from bench.timing import log, rounds, timed
from common.console import table
from pipeline.loader import Batch
from train import launch
from train.loop import Trainer
from train.step import generator_for

COPY = "copy"
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CALLS = {"cpu": 2, "cuda": 20}  # in a row, timed together

# operations that move no bytes, though their schema does not call them views
NO_TRAFFIC = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
}


class Peaks(Record, tag="peak", frozen=True):
    """Peak rates: FLOPs per second by precision, and bytes read and written per second by COPY."""

    rates: dict[str, Spread]


class Needs(Struct, frozen=True):
    """Arithmetic and memory per image of a training step, counted; without the optimizer."""

    flops: float
    saved_bytes: float  # kept for the backward pass
    moved_bytes: float  # read and written, operation by operation
    peak_bytes: int | NotMeasured  # of tensors in the whole step


class Shares(Struct, frozen=True):
    """Shares of the peaks that a step reaches, and the bounds by each need in images/s.

    What is kept for the backward pass is written once and read once: a fused kernel cannot move
    less unless it computes some of it again. `memory_moved` is for a step without any fusion.
    """

    arithmetic: float
    memory_kept: float
    memory_moved: float
    bound_arithmetic: float
    bound_kept: float
    bound_moved: float


class Roofline(TrainRecord, tag="limits", frozen=True):
    """`Needs` per image of a training step, and the shares of the peaks."""

    flops: float
    saved_bytes: float
    moved_bytes: float
    peak_bytes: int | NotMeasured
    shares: Shares


def peaks(device: torch.device, repeats: int) -> Peaks:
    """Time large matrix products and a large copy."""
    log.info("timing large matrix products and a large copy")
    side, kind = MATRIX_SIDE[device.type], device.type
    block = torch.zeros(COPY_BYTES[kind], dtype=torch.uint8, device=device)
    work = {COPY: 2.0 * COPY_BYTES[kind]}
    calls: dict[str, Callable[[], Any]] = {COPY: partial(torch.empty_like(block).copy_, block)}
    for name, dtype in DTYPES.items():
        if name == "fp32" or launch.has_bf16(device):
            matrix = torch.rand(side, side, device=device, dtype=dtype)
            calls[name], work[name] = partial(torch.mm, matrix, matrix), 2.0 * side**3
    for call in calls.values():
        call()
    blocks = {name: partial(timed, call, CALLS[kind], device) for name, call in calls.items()}
    seconds = rounds(blocks, repeats)
    rates = {name: [work[name] / s for s in values] for name, values in seconds.items()}
    return Peaks(rates={name: Spread.of(values) for name, values in rates.items()})


def needs(trainer: Trainer, batch: Batch) -> Needs:
    """Count the arithmetic and memory per image of a step.

    FLOPs and bytes are counted in an eager step, since a compiler would trace the counters; the
    peak memory is measured in the step as it is trained.
    """
    images = len(batch.images)
    draws = trainer.step.draw(images, generator_for(0, 0, 0, trainer.device))

    def eager() -> None:
        trainer.step.forward(batch.images, draws)["loss"].backward()

    with kept_storages() as storages:
        losses = trainer.step.forward(batch.images, draws)
        kept = sum(storages.values())
    del losses
    flops, moved = counts.count_flops(eager), moved_bytes(eager)
    # on a CPU the resident size says nothing about one step
    peak: int | NotMeasured = NotMeasured("the allocator of a CPU keeps what was freed")
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.update(batch)
        torch.cuda.synchronize(trainer.device)
        peak = torch.cuda.max_memory_allocated(trainer.device)
    trainer.optimizer.zero_grad(set_to_none=True)
    return Needs(flops / images, kept / images, moved / images, peak)


class _Traffic(TorchDispatchMode):
    """Sums the bytes of every tensor that an operation reads and of every one that it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func._schema.name.split("::")[1] not in NO_TRAFFIC:
            leaves = tree_leaves((args, kwargs, result))
            self.bytes += sum(_tensor_bytes(t) for t in leaves if isinstance(t, Tensor))
        return result


def _tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the storage of a tensor: expanded dimensions are stored, and read, once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count


def moved_bytes(call: Callable[[], Any]) -> int:
    """Bytes that the operations of `call` read and write, backward pass included.

    That is the memory traffic of an eager step if no cache held a tensor between two operations;
    views and allocations move nothing.
    """
    with _Traffic() as traffic:
        call()
    return traffic.bytes


@contextmanager
def kept_storages() -> Iterator[dict[int, int]]:
    """Yield the bytes kept for the backward pass, weights included, by address of the storage.

    Read them before the backward pass, which frees memory for other tensors.
    """
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def shares(need: Needs, rate: float, arithmetic: float, bandwidth: float) -> Shares:
    """Shares of the peaks at `rate` images/s.

    Args:
        arithmetic: peak FLOPs per second in the precision of the step.
        bandwidth: peak bytes per second.
    """
    bounds = {
        "bound_arithmetic": arithmetic / need.flops,
        "bound_kept": bandwidth / (2 * need.saved_bytes),
        "bound_moved": bandwidth / need.moved_bytes,
    }
    return Shares(*[rate / bound for bound in bounds.values()], **bounds)


def measure(
    trainer: Trainer, batch: Batch, preset: str, rate: float, rates: Mapping[str, Spread]
) -> Roofline:
    """Compare a step at `rate` images/s with the peaks of the machine."""
    assert trainer.config.precision is not None
    need = needs(trainer, batch)
    peak, bandwidth = rates[trainer.config.precision].median, rates[COPY].median
    return Roofline(
        *training_of(trainer, preset),
        flops=need.flops,
        saved_bytes=need.saved_bytes,
        moved_bytes=need.moved_bytes,
        peak_bytes=need.peak_bytes,
        shares=shares(need, rate, peak, bandwidth),
    )


def report_peaks(peak: Peaks) -> str:
    lines = ["peaks of this machine in this run"]
    for name, rate in peak.rates.items():
        unit = "GB/s read and written" if name == COPY else "GFLOP/s in a matrix product"
        lines.append(f"  {name}: {rate.times(1e-9):,.0f} {unit}")
    return "\n".join(lines)


def report(record: Roofline) -> str:
    """Show needs, shares of the peaks and bounds."""
    share = record.shares
    flops = f"{record.flops / 1e6:,.0f} MFLOP"
    kept = f"2 x {record.saved_bytes / 1e6:.2f} MB"
    moved = f"{record.moved_bytes / 1e6:.2f} MB"
    needed = [
        ("arithmetic", flops, share.arithmetic, share.bound_arithmetic),
        ("kept, written and read", kept, share.memory_kept, share.bound_kept),
        ("moved, op by op", moved, share.memory_moved, share.bound_moved),
    ]
    rows = [["an image needs", "", "share of peak", "bound, images/s"]]
    rows += [[name, need, f"{part:.1%}", f"{bound:,.0f}"] for name, need, part, bound in needed]
    peak = record.peak_bytes
    memory = f"{peak}" if isinstance(peak, NotMeasured) else f"{peak / 1e9:.2f} GB"
    return f"{table(rows)}\nmost memory of tensors in a step: {memory}"
