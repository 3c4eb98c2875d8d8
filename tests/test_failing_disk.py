"""A disk that fails at an operation: a named error and no traceback, and the command continues.

Commands run in forks of this process, where one call of the file system raises.
"""

import errno
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from eval import embed
from shards.pack import __main__ as pack
from tests.helpers.crashes.calls import Call, before_each
from tests.helpers.patches import write_patches
from tests.helpers.trained_runs import make_run
from train import launch, program
from train import main as train

OPERATIONS = (
    *((os, name) for name in ("fsync", "pwrite", "unlink")),
    *((Path, name) for name in ("rename", "mkdir", "write_bytes")),
)
NAMES_NO_FILE = ("fsync", "pwrite")
TRIED = {"pack": 6, "embed": 6, "train": 3}  # operations of each command

pytestmark = pytest.mark.slow


def fail_at(number: int, reason: int, count: Path) -> None:
    """Let operation `number` of this process raise; write the number of operations to a file."""

    def act(call: int, name: str, _: Call, args: tuple[Any, ...]) -> None:
        count.write_text(str(call))
        if call == number:
            path = () if name in NAMES_NO_FILE else (str(args[0]),)
            raise OSError(reason, os.strerror(reason), *path)

    before_each(OPERATIONS, act)


def run_forked(command: Callable[[], int], output: Path, prepare: Callable[[], None]) -> int:
    """Run a command in a fork, with what it prints in a file; return its exit status."""
    if (child := os.fork()) == 0:
        status = 99
        try:
            with output.open("w") as file:
                sys.stdout = sys.stderr = file
                prepare()
                try:
                    status = command() or 0
                except Exception:
                    traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_main(main: Callable[[], int], *arguments: object) -> int:
    with mock.patch.object(sys, "argv", ["command", *map(str, arguments)]):
        return main()


@pytest.mark.parametrize("name", ["pack", "embed", "train"])
def test_an_operation_that_fails_is_named_and_the_command_continues(
    name: str, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "threads_for", lambda *args: 1)
    monkeypatch.setattr(program, "conclude", lambda *args: None)
    torch.set_num_threads(1)
    write_patches(tmp_path / "raw", {"train": 4, "val": 1, "test": 1}, ("a", "b"), seed=1)
    run, out = make_run(tmp_path / "run", small_dataset), tmp_path / "out"
    budget = ["--images", "36", "--batch-size", "12", "--loop.checkpoints", "3", "--track"]
    commands: dict[str, Callable[[], int]] = {
        "pack": lambda: run_main(pack.main, tmp_path / "raw", out, "--workers", 1),
        "embed": lambda: run_main(
            embed.main,
            run,
            tmp_path / "raw",
            "--out",
            out / "t",
            "--threads",
            1,
            "--formats",
            "npy",
        ),
        "train": lambda: train.main(
            ["vae", "--data", str(small_dataset), "--out", str(out), "--resume", *budget]
        ),
    }
    command, count, output = commands[name], tmp_path / "count", tmp_path / "output"
    assert run_forked(command, output, lambda: fail_at(0, errno.EIO, count)) == 0
    whole, total = {p.relative_to(out) for p in out.rglob("*")}, int(count.read_text())
    draw = random.Random(name)
    for number in draw.sample(range(1, total + 1), TRIED[name]):
        shutil.rmtree(out)
        reason = draw.choice([errno.EIO, errno.ENOSPC])
        armed = partial(fail_at, number, reason, count)
        status, printed = run_forked(command, output, armed), output.read_text()
        assert "Traceback" not in printed, (number, printed)
        if status:  # else what failed was the removal of a file that was not needed any more
            error = next(line for line in printed.splitlines() if line.startswith("error: "))
            assert os.strerror(reason) in error and str(tmp_path) in error, (number, error)
        assert run_forked(command, output, lambda: None) == 0, (number, output.read_text())
        assert {p.relative_to(out) for p in out.rglob("*")} == whole, number
