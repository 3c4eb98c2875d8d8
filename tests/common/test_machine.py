"""The machine: cores that a process may use, its threads, and the record of all that.

The kind of limits on cores: affinity; quotas of control groups, version 1 and 2, both at once
(hybrid), set on the group or on one that holds it, fractional, below one core, above the cores,
"max" and -1 for none; containers that see their group as the root, or the host's path of it; files
that are missing or broken. On memory: what is used already, and what of that the system can take
back. Of threads: --threads, OMP_NUM_THREADS set by a user or a launcher.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import machine
from common.machine import (
    PACKAGES,
    available_memory,
    cpu_quota,
    environment,
    memory_limit,
    threads_for,
    usable_core_numbers,
    usable_cores,
)


def test_usable_cores_are_those_of_the_process() -> None:
    code = """
import os
from common.machine import usable_core_numbers, usable_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert usable_cores() == 1 and usable_core_numbers() == os.sched_getaffinity(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 1 <= usable_cores() <= len(usable_core_numbers()) <= (os.cpu_count() or 1)


def test_the_record_is_json_and_names_versions_device_and_commit() -> None:
    record = json.loads(json.dumps(asdict(environment())))
    assert record.keys() == {
        "python",
        "platform",
        "packages",
        "device",
        "threads",
        "commit",
        "dirty",
    }
    assert record["packages"].keys() == set(PACKAGES) and record["packages"]["torch"]
    assert record["device"] and record["threads"] >= 1


def test_counting_cores_does_without_torch() -> None:
    code = "import sys, common.machine as m; m.usable_cores(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"
V1 = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "38 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
V1_OF_HOST = "33 31 0:29 /docker/ab /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"
CPUSET = "34 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
CPU = "/sys/fs/cgroup/cpu,cpuacct"
QUOTAS = {
    "no control groups": ([], [], {}, None),
    "no limit": (["0::/a"], [V2], {"/sys/fs/cgroup/a/cpu.max": "max 100000"}, None),
    "no file": (["0::/a"], [V2], {}, None),
    "version 2": (["0::/a"], [V2], {"/sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
    "half a core": (["0::/"], [V2], {"/sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
    "another period": (["0::/"], [V2], {"/sys/fs/cgroup/cpu.max": "15000 10000"}, 1.5),
    "without a period": (["0::/"], [V2], {"/sys/fs/cgroup/cpu.max": "max"}, None),
    "a parent": (
        ["0::/job/step/task"],
        [V2],
        {
            "/sys/fs/cgroup/job/cpu.max": "300000 100000",
            "/sys/fs/cgroup/job/step/cpu.max": "max 100000",
            "/sys/fs/cgroup/job/step/task/cpu.max": "800000 100000",
        },
        3.0,
    ),
    "outside of the mount": (["0::/../other"], [V2], {"/sys/fs/other/cpu.max": "1 1"}, None),
    "version 1": (
        ["4:cpuset:/", "3:cpu,cpuacct:/a/b"],
        [CPUSET, V1],
        {f"{CPU}/a/cpu.cfs_quota_us": "250000", f"{CPU}/a/cpu.cfs_period_us": "100000"},
        2.5,
    ),
    "version 1 without a limit": (
        ["3:cpu,cpuacct:/"],
        [V1],
        {f"{CPU}/cpu.cfs_quota_us": "-1", f"{CPU}/cpu.cfs_period_us": "100000"},
        None,
    ),
    "the path of the host": (
        ["3:cpu:/docker/ab/in"],
        [V1_OF_HOST],
        {
            "/sys/fs/cgroup/cpu/in/cpu.cfs_quota_us": "70000",
            "/sys/fs/cgroup/cpu/in/cpu.cfs_period_us": "100000",
        },
        0.7,
    ),
    "another path than the mount's": (
        ["3:cpu:/kubepods/x"],
        [V1_OF_HOST],
        {
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        4.0,
    ),
    "hybrid": (
        ["3:cpu,cpuacct:/a", "0::/a"],
        [V1, HYBRID],
        {f"{CPU}/a/cpu.cfs_quota_us": "100000", f"{CPU}/a/cpu.cfs_period_us": "100000"},
        1.0,
    ),
    "broken": (["nothing", "0::/a"], ["short", V2], {"/sys/fs/cgroup/a/cpu.max": "9 0"}, None),
}


def write_control_groups(
    root: Path, groups: list[str], mounts: list[str], files: dict[str, str]
) -> None:
    """Write the files of the system below `root`; without groups there are none."""
    if groups:
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
        (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    for path, text in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n")


@pytest.mark.parametrize("name", QUOTAS)
def test_the_quota_of_control_groups_is_found(name: str, tmp_path: Path) -> None:
    groups, mounts, files, quota = QUOTAS[name]
    write_control_groups(tmp_path, groups, mounts, files)
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("cores", "quota", "usable"),
    [(8, None, 8), (8, 0.5, 1), (8, 1.5, 2), (8, 3.0, 3), (2, 16.0, 2), (1, 1.5, 1)],
)
def test_a_quota_limits_the_usable_cores(
    cores: int, quota: float | None, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_core_numbers", lambda: set(range(cores)))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert usable_cores() == usable


@pytest.mark.parametrize(
    ("asked", "variable", "processes", "threads"),
    [
        (None, None, 1, 8),
        (None, None, 3, 2),
        (None, None, 20, 1),
        (3, "2", 4, 3),
        (None, "1", 2, 4),  # the launchers set 1
        (None, "2", 1, 2),
        (None, "4,2", 1, 4),
        (None, "64", 1, 8),
        (None, "many", 1, 8),
    ],
)
def test_threads_are_those_asked_for_or_share_the_cores(
    asked: int | None,
    variable: str | None,
    processes: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads_for(asked, processes) == threads
    with pytest.raises(ValueError, match="threads is 0"):
        threads_for(0)


def test_threads_are_those_of_torch_and_of_libraries_loaded_before_and_after() -> None:
    code = """
import numpy, threadpoolctl
from common.machine import use_threads
use_threads(1)
import sklearn.linear_model, torch
pools = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
assert torch.get_num_threads() == 1 and pools == {1}, pools
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


V1_MEMORY = "36 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
GROUP = "/sys/fs/cgroup/job"
LIMITS = {
    "version 2": (
        ["0::/job"],
        [V2],
        {
            f"{GROUP}/memory.max": "1000000",
            f"{GROUP}/memory.current": "600000",
            f"{GROUP}/memory.stat": "anon 500000\ninactive_file 100000",
        },
        (1_000_000, 500_000),
    ),
    "version 1": (
        ["5:memory:/"],
        [V1_MEMORY],
        {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "900000",
            "/sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200000",
        },
        (1_000_000, 300_000),
    ),
    "version 1 without a limit": (
        ["5:memory:/"],
        [V1_MEMORY],
        {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "900000",
            "/sys/fs/cgroup/memory/memory.stat": "",
        },
        (None, None),
    ),
    "no limit": (
        ["0::/job"],
        [V2],
        {
            f"{GROUP}/memory.max": "max",
            f"{GROUP}/memory.current": "600000",
            f"{GROUP}/memory.stat": "",
        },
        (None, None),
    ),
    "more in use than allowed": (
        ["0::/job"],
        [V2],
        {
            f"{GROUP}/memory.max": "1000",
            f"{GROUP}/memory.current": "2000",
            f"{GROUP}/memory.stat": "",
        },
        (1000, 0),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_memory_is_what_the_control_groups_leave(name: str, tmp_path: Path) -> None:
    groups, mounts, files, (limit, left) = LIMITS[name]
    write_control_groups(tmp_path, groups, mounts, files)
    assert memory_limit(tmp_path) == limit
    available = available_memory(tmp_path)
    assert available == left if left is not None else available > 1_000_000


def test_neighbours_are_others_on_the_cores_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = {"now": 100.0, "others": 7.0, "ours": 3.0, "idle_core": 50.0}

    def times(percpu: bool) -> list[SimpleNamespace]:
        busy = clock["others"] + clock["ours"]
        elsewhere = SimpleNamespace(user=clock["idle_core"], system=0.0)
        return [SimpleNamespace(user=busy / 4, system=busy / 4)] * 2 + [elsewhere]

    monkeypatch.setattr("psutil.cpu_times", times)
    monkeypatch.setattr(os, "times", lambda: (clock["ours"], 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "usable_core_numbers", lambda: {0, 1})
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    neighbours = machine.Neighbours()
    clock |= {"now": 110.0, "ours": 13.0, "idle_core": 60.0}
    assert neighbours.cores() == 0
    clock |= {"others": 19.0}
    assert neighbours.cores() == pytest.approx(1.2)


def test_where_nothing_says_how_busy_cores_are_nobody_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hidden(percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_times", hidden)
    assert machine.Neighbours().cores() == 0


def test_a_process_beside_this_one_is_seen() -> None:
    neighbours = machine.Neighbours()
    spin = "import time\nend = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    time.sleep(0.6)
    seen = neighbours.cores()
    process.wait()
    assert seen > 0.1


@pytest.mark.parametrize(
    ("busy", "threads", "advice"),
    [(0.1, 4, None), (0.9, 4, "--threads 3 "), (2.2, 4, "--threads 1 "), (2.2, 1, None)],
)
def test_more_threads_than_others_leave_cores_are_too_many(
    busy: float, threads: int, advice: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    crowded = machine.crowding(busy, threads)
    assert bool(crowded) == bool(advice) and (advice or "") in (crowded or "")
