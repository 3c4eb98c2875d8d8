"""How commands end: every error of the system is one line that names what failed."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.command import run_command
from common.locks import held

ROOT = Path(__file__).resolve().parents[2]
MANY_LINES = (
    "import sys; from common.command import run_command; "
    "sys.exit(run_command('x', lambda: lambda: [print('line', flush=True) for _ in range(9**5)]))"
)


def test_an_error_of_the_system_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "shards/train-000000.tar")

    monkeypatch.setattr(sys, "argv", ["x"])
    assert run_command("x", lambda: fail) == 1
    assert capsys.readouterr().err == (
        "error: [Errno 5] Input/output error: 'shards/train-000000.tar'\n"
    )

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def lock() -> None:
        with held(tmp_path, "writes"):
            pass

    monkeypatch.setattr(os, "pwrite", full)
    assert run_command("x", lambda: lock) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / '.lock'} cannot be written: No space left")


def test_a_reader_that_ends_early_is_no_traceback() -> None:
    command = [sys.executable, "-c", MANY_LINES]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(60) == 1
    assert error == "error: what read the output of this command has ended\n"


def test_closed_streams_do_not_matter() -> None:
    code = "import sys; from common.command import run_command; " + (
        "sys.exit(run_command('x', lambda: lambda: print('line', flush=True)))"
    )
    closed = f'exec >&- 2>&-; exec "{sys.executable}" -c "$0"'
    assert subprocess.run(["bash", "-c", closed, code], cwd=ROOT, timeout=60).returncode == 0
