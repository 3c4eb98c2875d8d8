"""What a piece of work took: wall time, processor time of this process and its children, memory."""

import gc
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil


class Spent(NamedTuple):
    seconds: float
    core_seconds: float  # user and system, of children too once they have ended
    grown: int  # bytes of resident memory of this process, after the work


def spent(work: Callable[[], object]) -> Spent:
    gc.collect()
    memory, cores, began = resident(), _processor(), time.perf_counter()
    work()
    seconds, cores = time.perf_counter() - began, _processor() - cores
    gc.collect()
    return Spent(seconds, cores, resident() - memory)


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
