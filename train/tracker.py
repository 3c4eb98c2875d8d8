"""Metrics of a run: JSON lines, TensorBoard, and lines for people. Nothing here synchronises the
device except `flush`, which is called on logging steps.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from common.console import clock

LOG = "metrics.jsonl"


class Sink(Protocol):
    def write(self, images: int, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Scalars under RUN/tensorboard, the horizontal axis in images."""

    def __init__(self, run: Path, images_seen: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=images_seen)

    def write(self, images: int, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{record['kind']}/{name}", value, images)

    def close(self) -> None:
        self.writer.close()


TRACKERS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": TensorBoard}


class Sums:
    """Running sums of the loss terms on the device, and where each first was not finite."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.names = names
        self.totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        self.first_bad = torch.full((len(names),), -1, dtype=torch.int64, device=device)

    def add(self, losses: dict[str, Tensor], images_seen: int) -> None:
        values = torch.stack([losses[name].detach() for name in self.names])
        fresh = ~values.isfinite() & (self.first_bad < 0)
        self.first_bad.masked_fill_(fresh, images_seen)
        self.totals[:-1] += values
        self.totals[-1] += 1

    def flush(self) -> dict[str, float]:
        """Means since the last flush; one synchronisation."""
        *totals, steps = self.totals.tolist()
        self.totals.zero_()
        return {name: total / max(steps, 1) for name, total in zip(self.names, totals, strict=True)}

    def bad(self) -> tuple[int, list[str]] | None:
        """(images seen before the first bad step, its non-finite terms); synchronises."""
        at = self.first_bad.tolist()
        steps = [images for images in at if images >= 0]
        if not steps:
            return None
        return min(steps), [n for n, i in zip(self.names, at, strict=True) if i == min(steps)]

    def tensors(self) -> dict[str, Tensor]:
        return {"totals": self.totals, "first_bad": self.first_bad}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.totals.copy_(tensors["totals"])
        self.first_bad.copy_(tensors["first_bad"])


class Tracker:
    """Writes records of the main process; the other ranks get one without sinks."""

    def __init__(self, run: Path, sinks: list[Sink], resume_bytes: int | None = None) -> None:
        self.path = run / LOG
        if resume_bytes is not None and self.path.exists():
            with open(self.path, "r+b") as file:
                file.truncate(min(resume_bytes, self.path.stat().st_size))
        self.sinks, self.started = sinks, time.monotonic()

    def write(self, kind: str, images: int, values: dict[str, float]) -> None:
        record = {"kind": kind, "images": images, **values}
        clock = {"time_s": round(time.monotonic() - self.started, 3)}
        with open(self.path, "a") as file:
            file.write(json.dumps({**record, **clock}) + "\n")
        for sink in self.sinks:
            sink.write(images, record)

    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class Progress:
    """Images done, rate and time left: plain lines a few seconds apart."""

    INTERVAL_S = 5.0

    def __init__(self, total: int, done: int, say: Callable[[str], None]) -> None:
        self.total, self.start, self.say = total, done, say
        self.began = self.last = time.monotonic()

    def rate(self, done: int) -> float:
        return (done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def update(self, done: int, note: str) -> None:
        now = time.monotonic()
        if now - self.last < self.INTERVAL_S and done < self.total:
            return
        self.last = now
        left = (self.total - done) / max(self.rate(done), 1e-9)
        self.say(
            f"{done:>11,}/{self.total:,} images {done / self.total:4.0%}"
            f"  {self.rate(done):,.0f} images/s  {clock(left)} left  {note}"
        )
