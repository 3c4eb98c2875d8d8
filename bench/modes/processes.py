"""Processes that wait for a signal, so that their simultaneous work can be timed.

Such a process is a module of `bench.modes` with a main program: it prints READY when it is warm,
does its work when a line arrives on its standard input, and ends when that is closed.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from common.errors import DataError

READY, GO = "ready", "go"

Process = subprocess.Popen[str]


@contextmanager
def started(module: str, arguments: Sequence[Sequence[str]]) -> Iterator[list[Process]]:
    """Start a process of `module` per entry of `arguments`; yield them warm and waiting.

    Raises:
        DataError: one of them ended.
    """
    with ExitStack() as stack:
        processes = []
        for words in arguments:
            command = [sys.executable, "-m", module, *words]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            processes.append(stack.enter_context(process))
        expect_ready(processes)
        yield processes


def tell(processes: Sequence[Process]) -> None:
    """Send each process a line, to start or to continue."""
    for process in processes:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: `read_line` reports it
            print(GO, file=process.stdin, flush=True)


def read_line(process: Process) -> str:
    """Wait for the next line of a process.

    Raises:
        DataError: it ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise DataError(
            f"one of several processes ended with exit status {process.wait()}; its error is above"
        )
    return line


def expect_ready(processes: Sequence[Process]) -> None:
    """Wait until every process has written READY."""
    for process in processes:
        if (line := read_line(process)) != READY:
            raise DataError(f"one of several processes wrote {line[:80]!r}, expected {READY!r}")


def answer(text: str) -> None:
    """Send a line from such a process to the one that started it."""
    print(text, flush=True)
