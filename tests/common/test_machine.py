"""The record of the machine, without which no measured number can be read."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

from common.machine import PACKAGES, environment, usable_core_numbers, usable_cores


def test_usable_cores_are_those_of_the_process() -> None:
    code = """
import os
from common.machine import usable_core_numbers, usable_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
assert usable_cores() == 1 and usable_core_numbers() == os.sched_getaffinity(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 1 <= usable_cores() == len(usable_core_numbers()) <= (os.cpu_count() or 1)


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
