"""Fixtures of the tests of training."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.command import STOPPING
from tests.helpers.slurm import ROOT, Slurm
from train import launch, program


@pytest.fixture(scope="module")
def main_in_process() -> Iterator[None]:
    """One thread and no evaluation here; what `main` changes in this process is given back."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, *STOPPING)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "threads_for", lambda *args: 1)
        patch.setattr(program, "conclude", lambda *args: None)
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)


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
