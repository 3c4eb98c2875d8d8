"""Timers: device events on CUDA, the wall clock on the CPU; medians with their spread."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Say = Callable[[str], None]
K = TypeVar("K", bound=Hashable)


class Mark:
    """A moment in the work of a device."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.time = time.perf_counter()

    def since(self, earlier: "Mark") -> float:
        """Seconds from `earlier` to here; waits for the device to arrive."""
        if self.event is None or earlier.event is None:
            return self.time - earlier.time
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: the median, and the smallest and largest."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))


def timed(call: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Mean seconds of a call over `steps` calls in a row."""
    if device.type == "cuda":  # what was queued before is not part of it
        torch.cuda.synchronize(device)
    begin = Mark(device)
    for _ in range(steps):
        call()
    return Mark(device).since(begin) / steps


def rounds(blocks: Mapping[K, Callable[[], float]], repeats: int, say: Say) -> dict[K, list[float]]:
    """What each block returns, `repeats` times.

    The blocks run in turn, in every other round backwards: a machine that becomes slower or
    faster meanwhile does so for all of them alike, and the same round of two blocks compares.
    """
    values: dict[K, list[float]] = {name: [] for name in blocks}
    for i in range(repeats):
        began = time.perf_counter()
        for name in reversed(list(blocks)) if i % 2 else blocks:
            values[name].append(blocks[name]())
        say(f"  round {i + 1} of {repeats} took {time.perf_counter() - began:.1f} s")
    return values


class Spans:
    """Time spent inside named calls while the code around them runs as it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, watched under `name`."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = Mark(self.device)
            result = call(*args, **kwargs)
            self._marks[name].append((begin, Mark(self.device)))
            return result

        return watched

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of every call by name, in the order of the calls."""
        return {name: [end.since(begin) for begin, end in m] for name, m in self._marks.items()}
