"""Fixtures of the tests of training."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm import ROOT, Slurm


@pytest.fixture(scope="module")
def slurm(small_dataset: Path) -> Iterator[Slurm]:
    """A Slurm of two nodes on this machine."""
    script = str(ROOT / "tests/helpers/local_slurm.sh")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # the path of a socket must be short
    started = subprocess.run([script, "start", str(folder)], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield Slurm(started.stdout.strip(), small_dataset)
    finally:
        subprocess.run([script, "stop", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
