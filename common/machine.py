"""The machine: usable cores, versions and devices for the record, the allocator of freed memory."""

import ctypes
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "accelerate", "kornia", "numpy", "scikit-learn", "torchmetrics")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT_BYTES = 256 << 20  # of freed memory, at most
_LARGEST_BYTES = 32 << 20  # of a block that comes from it: the most that glibc allows


def usable_cores() -> int:
    """Cores that this process may run on, at least one."""
    return max(1, len(usable_core_numbers()))


def usable_core_numbers() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def environment() -> dict[str, Any]:
    """Describe what a number was measured on, as plain JSON.

    Python, package versions, device, CPU threads, git commit and whether the tree is dirty.
    """
    import torch  # packing, which counts cores, does without

    cuda = torch.cuda.is_available()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        **_commit(),
    }


@cache
def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, so that the next batch takes it as it is.

    glibc gives large blocks back to the system and asks for them anew: encoding on CPU then spends
    half its time on page faults (bench/LOG.md). Takes effect once for the whole process; False
    where the C library has no such setting.
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


def _commit() -> dict[str, Any]:
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
