"""The GPU run in miniature on a CPU: every step ends well, and leaves its numbers."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.command import DATA, MEASURED, TEST
from bench.gpu.points import GPU_VARIANTS

ROOT = Path(__file__).parents[2]


def numbers(value: Any) -> Iterator[float]:
    """Every number in plain JSON values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.slow
def test_every_step_runs_and_leaves_its_numbers(tmp_path: Path) -> None:
    run = subprocess.run(
        ["bash", "bench/gpu/run.sh", str(tmp_path / "out"), "--dry"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    log = tmp_path / "out" / "log.txt"
    assert run.returncode == 0, run.stdout + run.stderr + log.read_text()[-5000:]
    document = json.loads((tmp_path / "out" / "gpu.json").read_bytes())
    expected = [DATA.name, TEST.name, "compile dvae 16", *(step.name for step in MEASURED)]
    assert [step["name"] for step in document["steps"]] == expected
    assert {step["status"] for step in document["steps"]} == {"done"}
    assert len(document["tests"]) >= 10  # collected
    records = document["results"]
    points = [(r["preset"], r["variant"]) for r in records if r["kind"] == "point"]
    assert [variant for preset, variant in points if preset == "dvae"] == list(GPU_VARIANTS)
    assert {preset for preset, _ in points} == {"dvae", "eq-dvae", "d4-dvae"}
    assert {"machine", "peak", "source", "split", "augment", "step", "embedded", "kernels"} <= {
        r["kind"] for r in records
    }
    assert all(map(math.isfinite, numbers(records)))
    assert "dvae: whole steps at batch 16" in run.stdout and "gpu.json" in run.stdout
