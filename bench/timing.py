"""Timers: device events on CUDA, the wall clock on the CPU; processor time and memory of work."""

import gc
import logging
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

K = TypeVar("K", bound=Hashable)

log = logging.getLogger("eqdvae.bench")  # progress of a measurement


class Mark:
    """A moment in the work of a device."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.time = time.perf_counter()

    def since(self, earlier: "Mark") -> float:
        """Seconds from `earlier` to this mark; waits until the device has reached it."""
        if self.event is None or earlier.event is None:
            return self.time - earlier.time
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def timed(call: Callable[[], Any], steps: int, device: torch.device) -> float:
    """Mean seconds per call over `steps` calls in a row."""
    if device.type == "cuda":  # what was queued before is not part of it
        torch.cuda.synchronize(device)
    begin = Mark(device)
    for _ in range(steps):
        call()
    return Mark(device).since(begin) / steps


def rounds(blocks: Mapping[K, Callable[[], float]], repeats: int) -> dict[K, list[float]]:
    """Call each block `repeats` times and return what it returned.

    The blocks run in turn, every other round in reverse order: if the machine becomes slower or
    faster meanwhile, all are affected alike, and values of the same round can be compared.
    """
    values: dict[K, list[float]] = {name: [] for name in blocks}
    for i in range(repeats):
        began = time.perf_counter()
        for name in reversed(list(blocks)) if i % 2 else blocks:
            values[name].append(blocks[name]())
        log.info(f"  round {i + 1} of {repeats} took {time.perf_counter() - began:.1f} s")
    return values


class Spans:
    """Measure the time inside named calls while the code around them runs unchanged."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `call` so that it is timed under `name`."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = Mark(self.device)
            result = call(*args, **kwargs)
            self._marks[name].append((begin, Mark(self.device)))
            return result

        return watched

    def seconds(self) -> dict[str, list[float]]:
        """Seconds of every call by name, in the order of the calls."""
        return {name: [end.since(begin) for begin, end in m] for name, m in self._marks.items()}


class Usage(NamedTuple):
    """Time and memory that a piece of work used."""

    seconds: float
    core_seconds: float  # user and system, of children too once they have ended
    grown: int  # bytes of resident memory of this process, after the work


def usage(work: Callable[[], object]) -> Usage:
    """Do the work, and measure its time and memory."""
    gc.collect()
    memory, cores, began = resident(), _core_seconds(), time.perf_counter()
    work()
    seconds, cores = time.perf_counter() - began, _core_seconds() - cores
    gc.collect()
    return Usage(seconds, cores, resident() - memory)


def resident() -> int:
    """Bytes of resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _core_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
