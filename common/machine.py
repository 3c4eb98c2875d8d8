"""The machine: usable cores, threads, a record of versions and devices, the memory allocator."""

import ctypes
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGES = ("torch", "torchvision", "accelerate", "kornia", "numpy", "scikit-learn", "torchmetrics")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_KEPT_BYTES = 256 << 20  # most freed memory that stays with the process
_CROWD = 0.5  # cores by which threads and other programs may exceed those usable
UNLIMITED_BYTES = 1 << 60  # version 1 of control groups has no "max"
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
    """Number of cores that this process may use, at least one.

    Those that it may run on, and no more than the quota of its control group, rounded up.
    """
    cores, quota = len(usable_core_numbers()), cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def usable_core_numbers() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores' worth of time that the control groups of this process allow; None: all.

    Containers and batch systems limit processes this way. The group and all that hold it count,
    of version 2 (`cpu.max`) and of version 1 (`cpu.cfs_quota_us`).

    Args:
        root: folder that stands for `/`.
    """
    quotas = []
    for level in _control_groups("cpu", root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = " ".join((level / name).read_text() for name in names).split()
                if int(period) > 0 and int(quota) > 0:
                    quotas.append(int(quota) / int(period))
            except (OSError, ValueError):  # no such limit, or "max"
                continue
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that the control groups of this process allow; None: all.

    Args:
        root: folder that stands for `/`.
    """
    return min((limit for limit, _ in _memory_limits(root)), default=None)


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that a process can take without swapping or being killed.

    Those that the machine has available, and no more than its control groups leave.

    Args:
        root: folder that stands for `/`.
    """
    import psutil

    left = (max(0, limit - used) for limit, used in _memory_limits(root))
    return min([psutil.virtual_memory().available, *left])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limits of memory, and what counts against each and cannot be taken back."""
    versions = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for level in _control_groups("memory", root):
        for limit, usage, cache_name in versions:
            try:
                allowed, used = (int((level / name).read_text()) for name in (limit, usage))
                lines = (level / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # no such limit, or "max"
                continue
            cached = dict(line.split() for line in lines if len(line.split()) == 2)
            if allowed < UNLIMITED_BYTES:
                yield allowed, used - int(cached.get(cache_name, 0))


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups of this process, and of those that hold them."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return
    for path, group in _hierarchies(controller, groups, mounts):
        mount = root / path.lstrip("/")
        folder = mount / group.strip("/")
        for level in (folder, *folder.parents):
            if not level.is_relative_to(mount):
                break
            yield level


def _hierarchies(
    controller: str, groups: list[str], mounts: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield where a hierarchy with a controller is mounted, and this process's group below that."""
    paths = {}
    for line in groups:  # 3:cpu,cpuacct:/docker/ab12 of version 1, 0::/docker/ab12 of version 2
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = path
    for line in mounts:  # 32 31 0:29 ROOT MOUNT rw,relatime - cgroup cgroup rw,cpu
        words, _, system = line.partition(" - ")
        top, mount = [*words.split(), *[""] * 5][3:5]
        kind, _, options = [*system.split(), *[""] * 3][:3]
        if kind in paths and (kind == "cgroup2" or controller in options.split(",")):
            top, path = top.rstrip("/"), paths[kind]
            yield mount, path[len(top) :] if f"{path}/".startswith(f"{top}/") else "/"


class Neighbours:
    """Other processes on the cores that this one may use, watched from the creation on.

    What runs at a lower priority does not count: it gives way.
    """

    def __init__(self) -> None:
        self._began, self._others = time.monotonic(), _seconds_of_others()

    def cores(self) -> float:
        """Return how many of the usable cores they kept busy so far, on average."""
        seconds = _seconds_of_others() - self._others
        return max(0.0, seconds) / max(time.monotonic() - self._began, 1e-9)


def _seconds_of_others() -> float:
    """Seconds that others computed on the usable cores, but for a constant; 0 if nothing says."""
    import psutil

    try:
        cores = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError):  # /proc/stat is hidden, as in some sandboxes
        return 0.0
    ours = sum(os.times()[:4])  # of ended children too
    usable = [cores[i] for i in usable_core_numbers() if i < len(cores)]
    return sum(core.user + core.system for core in usable) - ours


def crowding(busy: float, threads: int) -> str | None:
    """Say what to do where others keep `busy` of the usable cores, and `threads` need them too."""
    cores = usable_cores()
    free = max(1, cores - math.ceil(busy))
    if busy <= cores - threads + _CROWD or free >= threads:
        return None
    return (
        f"other programs keep {busy:.1f} of the {cores} usable cores busy: threads that share a "
        "core wait for each other, and two trainings together may be slower than one; "
        f"--threads {free} leaves the others theirs (docs/running.md)"
    )


def use_threads(count: int) -> None:
    """Compute with `count` threads: torch, and the libraries that numpy and scikit-learn bring.

    Those that are loaded later, and processes that are started, follow the environment.
    """
    import threadpoolctl
    import torch

    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    torch.set_num_threads(count)
    threadpoolctl.threadpool_limits(count)


def threads_for(asked: int | None, processes: int = 1) -> int:
    """Return the threads of each of `processes` that share this machine.

    Without `asked` they share the usable cores. OMP_NUM_THREADS can lower that to 2 or more: a 1
    does not count, since the launchers set it for want of a better number.

    Raises:
        ValueError: `asked` is not positive.
    """
    if asked is not None:
        if asked < 1:
            raise ValueError(f"threads is {asked}; expected at least 1")
        return asked
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # then, of nested regions
    own = int(text) if text.isdecimal() else 0
    share = max(1, usable_cores() // processes)
    return own if 1 < own < share else share


def environment() -> Environment:
    """Describe the software and the hardware of this process."""
    import torch  # not at the top: packing uses this module, and does not need torch

    return Environment(
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages={name: version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        threads=torch.get_num_threads(),
        commit=git("rev-parse", "HEAD"),
        dirty=code_changed(),
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


def version(name: str) -> str | None:
    """Return the version of an installed package."""
    from importlib import metadata  # slow, and not needed by workers, which use this module

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the model of the CPU, or at least its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def code_changed() -> bool | None:
    """Return whether Python files differ from the commit; data and runs in the clone do not count.

    None where git cannot be asked.
    """
    status = git("status", "--porcelain", "--", "*.py")
    return None if status is None else bool(status)


def git(*arguments: str) -> str | None:
    """Return what git prints on this code; None where it cannot be asked."""
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
