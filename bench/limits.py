"""How near a step comes to the arithmetic and the memory bandwidth of the machine.

The peaks are what this machine reached in the same run, not what its maker states: a product of
large square matrices in each precision, and a copy of a block that no cache holds. The caches of a
CPU hold much of a small batch: there a share of the memory bandwidth can pass 100 %.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench import counts, traffic
from bench.table import Record, cell, not_measured, spread, table
from bench.timing import Say, rounds, timed
from pipeline.loader import Batch
from train import launch
from train.loop import Trainer
from train.step import generator_for

COPY = "copy"
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
MATRIX = {"cpu": 2048, "cuda": 8192}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CALLS = {"cpu": 2, "cuda": 20}  # in a row, timed together


def peaks(device: torch.device, repeats: int, say: Say) -> Record:
    """Floating-point operations a second by precision, and bytes a second read and written."""
    say("timing large matrix products and a large copy")
    side, kind = MATRIX[device.type], device.type
    work = {COPY: 2.0 * COPY_BYTES[kind]}
    calls: dict[str, Callable[[], Any]] = {COPY: _copy(device)}
    for name, dtype in DTYPES.items():
        if name == "fp32" or launch.has_bf16(device):
            matrix = torch.rand(side, side, device=device, dtype=dtype)
            calls[name], work[name] = partial(torch.mm, matrix, matrix), 2.0 * side**3
    for call in calls.values():
        call()
    blocks = {n: partial(timed, call, CALLS[kind], device) for n, call in calls.items()}
    seconds = rounds(blocks, repeats, say)
    return {name: spread([work[name] / s for s in seconds[name]]) for name in seconds}


def _copy(device: torch.device) -> Callable[[], Any]:
    block = torch.zeros(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    return partial(torch.empty_like(block).copy_, block)


def needs(trainer: Trainer, batch: Batch) -> Record:
    """What one image of a step asks for, exactly: FLOPs, bytes kept, bytes moved; no optimizer.

    All counts are of the step without a compiler, which would trace the counters themselves; the
    peak memory is that of the step as it runs.
    """
    n = len(batch.images)
    draws = trainer.step.draw(n, generator_for(0, 0, 0, trainer.device))

    def eager() -> None:
        trainer.step.forward(batch.images, draws)["loss"].backward()

    found = {
        "flops": counts.count_flops(eager) / n,
        "saved_bytes": _saved(trainer, batch, draws) / n,
        "moved_bytes": traffic.moved(eager) / n,
    }
    peak = traffic.peak_memory(lambda: trainer.update(batch), trainer.device)
    reason = "the allocator of a CPU keeps what was freed"
    trainer.optimizer.zero_grad(set_to_none=True)
    return {**found, "peak_bytes": not_measured(reason) if peak is None else {"bytes": peak}}


def _saved(trainer: Trainer, batch: Batch, draws: Any) -> int:
    with traffic.saved() as storages:
        losses = trainer.step.forward(batch.images, draws)
        kept = sum(storages.values())
    del losses
    return kept


def shares(need: Record, precision: str, rates: Record, peak: Record) -> Record:
    """Peak shares of a step at `rates` images/s, and the bounds that each need sets, in images/s.

    What is kept for the backward pass is written once and read once: no fusion goes below that
    without computing parts anew. Operation by operation is the bound without any fusion.
    """
    rate = rates["median"]
    arithmetic, bandwidth = peak[precision]["median"], peak[COPY]["median"]
    kept = 2 * need["saved_bytes"]
    return {
        "arithmetic": rate * need["flops"] / arithmetic,
        "memory_kept": rate * kept / bandwidth,
        "memory_moved": rate * need["moved_bytes"] / bandwidth,
        "bound_arithmetic": arithmetic / need["flops"],
        "bound_kept": bandwidth / kept,
        "bound_moved": bandwidth / need["moved_bytes"],
    }


def measure(trainer: Trainer, batch: Batch, rates: Record, peak: Record) -> Record:
    """A record of kind `limits`."""
    need = needs(trainer, batch)
    assert trainer.config.precision is not None
    share = shares(need, trainer.config.precision, rates, peak)
    return {"kind": "limits", **need, "shares": share}


def report_peaks(peak: Record) -> str:
    lines = ["peaks of this machine in this run"]
    for name, rates in peak.items():
        unit = "GB/s read and written" if name == COPY else "GFLOP/s in a matrix product"
        giga = {k: rates[k] / 1e9 for k in ("median", "low", "high")}
        lines.append(f"  {name}: {cell(giga)} {unit}")
    return "\n".join(lines)


def report(record: Record) -> str:
    """Needs, shares of the peaks, bounds."""
    share = record["shares"]
    rows = [
        ["an image needs", "", "share of peak", "bound, images/s"],
        ["arithmetic", f"{record['flops'] / 1e6:,.0f} MFLOP", f"{share['arithmetic']:.1%}",
         f"{share['bound_arithmetic']:,.0f}"],
        ["kept, written and read", f"2 x {record['saved_bytes'] / 1e6:.2f} MB",
         f"{share['memory_kept']:.1%}", f"{share['bound_kept']:,.0f}"],
        ["moved, op by op", f"{record['moved_bytes'] / 1e6:.2f} MB",
         f"{share['memory_moved']:.1%}", f"{share['bound_moved']:,.0f}"],
    ]  # fmt: skip
    peak = record["peak_bytes"]
    memory = f"{peak['bytes'] / 1e9:.2f} GB" if "bytes" in peak else "not measured"
    return f"{table(rows)}\n  most memory of tensors in a step: {memory}"
