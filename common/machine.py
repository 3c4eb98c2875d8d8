"""The machine: usable cores, a record of versions and devices, and the memory allocator."""

import ctypes
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "torchvision", "accelerate", "kornia", "numpy", "scikit-learn", "torchmetrics")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT_BYTES = 256 << 20  # most freed memory that stays with the process
_LARGEST_BYTES = 32 << 20  # blocks above this are never kept: the most that glibc allows


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Software and hardware behind results and benchmarks; None: unknown, or not recorded."""

    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)  # name to version
    device: str | None = None  # name of the GPU, else of the CPU
    threads: int | None = None  # of torch on the CPU
    commit: str | None = None
    dirty: bool | None = None  # the tree differs from the commit


def usable_cores() -> int:
    """Number of cores that this process may run on, at least one."""
    return max(1, len(usable_core_numbers()))


def usable_core_numbers() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def environment() -> Environment:
    """Describe the software and the hardware of this process."""
    import torch  # not at the top: packing uses this module, and does not need torch

    status = _git("status", "--porcelain")
    return Environment(
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        threads=torch.get_num_threads(),
        commit=_git("rev-parse", "HEAD"),
        dirty=None if status is None else bool(status),
    )


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory in the process, so that the next batch reuses it.

    By default glibc returns large blocks to the system and requests them again: encoding on CPU
    then spends half its time on page faults (bench/LOG.md). Takes effect for the whole process.

    Returns:
        False if the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(
        mallopt
        and mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        and mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
