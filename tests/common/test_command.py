"""How commands end: every error of the system is one line that names what failed."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.command import INTERRUPTED, STOPPED, STOPPING, run_command
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
    closed = f'exec <&- >&- 2>&-; exec "{sys.executable}" -c "$0"'
    assert subprocess.run(["bash", "-c", closed, code], cwd=ROOT, timeout=60).returncode == 0


def test_a_full_disk_behind_the_output_is_named() -> None:
    code = "import sys; from common.command import run_command; " + (
        "sys.exit(run_command('x', lambda: lambda: print('line')))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device: 'standard output'\n"


def test_text_that_the_output_cannot_show_is_escaped() -> None:
    code = "import sys; from common.command import run_command; " + (
        "sys.exit(run_command('x', lambda: lambda: print('\\xfc \\u6f22')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\xfc \\u6f22\n", b"")


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        (signal.SIGINT, INTERRUPTED, "interrupted: the same command continues"),
        *((n, STOPPED, f"stopped by {n.name}: the same command continues") for n in STOPPING),
    ],
)
@pytest.mark.parametrize("while_parsing", [True, False])
def test_a_signal_ends_a_command_with_its_status(
    number: signal.Signals,
    status: int,
    message: str,
    while_parsing: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A second one of a scheduler does not hold up what ends."""
    ended = []

    def work() -> None:
        try:
            signal.raise_signal(number)
            pytest.fail("went on")
        finally:
            for _ in range(2 * (number in STOPPING)):
                signal.raise_signal(number)
            ended.append(number)

    def parse() -> Callable[[], None]:
        if while_parsing:
            work()
        return work

    monkeypatch.setattr(sys, "argv", ["x"])
    for each in STOPPING:
        signal.signal(each, signal.SIG_DFL)
    assert run_command("x", parse) == status and ended == [number]
    assert message in capsys.readouterr().err
    assert all(signal.getsignal(each) is signal.SIG_DFL for each in STOPPING)


def test_an_interruption_that_a_finalizer_ignored_comes_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Finalized()
        time.sleep(5)
        pytest.fail("went on")

    monkeypatch.setattr(sys, "argv", ["x"])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert run_command("x", lambda: work) == STOPPED
    assert capsys.readouterr().err.startswith("stopped by SIGTERM")


def test_signals_that_are_ignored_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by nohup
    try:
        assert run_command("x", lambda: lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
