"""Metrics of a run: JSON lines, and TensorBoard beside them.

Nothing here synchronises the device except `Sums.flush` and `Sums.bad`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eval.run import METRICS


class Sink(Protocol):
    def write(self, kind: str, images: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Write scalars under RUN/tensorboard; the horizontal axis is in images."""

    def __init__(self, run: Path, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen)

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{kind}/{name}", value, images)

    def close(self) -> None:
        self.writer.close()


TRACKERS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": TensorBoard}


class Sums:
    """Sums of the loss terms on the device, and where each first was non-finite."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self.first_bad = torch.full(
            (len(names),), -1, dtype=torch.int64, device=device
        )  # images seen

    def add(self, losses: dict[str, Tensor], images_seen: int) -> None:
        values = torch.stack([losses[name].detach() for name in self.names])
        newly_bad = ~values.isfinite() & (self.first_bad < 0)
        self.first_bad.masked_fill_(newly_bad, images_seen)
        self.totals[:-1] += values
        self.totals[-1] += 1

    def flush(self) -> dict[str, float]:
        """Return means since the last flush; synchronises."""
        *totals, steps = self.totals.tolist()
        self.totals.zero_()
        return {name: total / max(steps, 1) for name, total in zip(self.names, totals, strict=True)}

    def bad(self) -> tuple[int, list[str]] | None:
        """Return images seen before the first bad step, and its non-finite terms; synchronises."""
        first_bad = dict(zip(self.names, self.first_bad.tolist(), strict=True))
        first = min((images for images in first_bad.values() if images >= 0), default=None)
        if first is None:
            return None
        return first, [name for name, images in first_bad.items() if images == first]

    def tensors(self) -> dict[str, Tensor]:
        return {"totals": self.totals, "first_bad": self.first_bad}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.totals.copy_(tensors["totals"])
        self.first_bad.copy_(tensors["first_bad"])


class Tracker:
    """Appends records to RUN/metrics.jsonl and passes them to the sinks, on the main rank.

    Args:
        resume_bytes: length of metrics.jsonl at the checkpoint that the run continues from: what
            was written after it is cut off. None on other ranks, which write nothing.
    """

    def __init__(self, run: Path, sinks: list[Sink], resume_bytes: int | None = None) -> None:
        self.path = run / METRICS
        if resume_bytes is not None and self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(min(resume_bytes, self.path.stat().st_size))
        self.sinks, self.started = sinks, time.monotonic()

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        seconds = round(time.monotonic() - self.started, 3)
        record = {"kind": kind, "images": images, **values, "time_s": seconds}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for sink in self.sinks:
            sink.write(kind, images, values)

    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
