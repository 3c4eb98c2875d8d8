"""Processes that wait until they are told to go, so that what they do at once can be timed.

A process is a module of this folder with a main program: it prints READY when it is warm, does its
work when a line arrives on its standard input, and ends when that is closed.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from common.errors import DataError

READY, GO = "ready", "go"

Process = subprocess.Popen[str]


@contextmanager
def started(module: str, orders: Sequence[Sequence[str]]) -> Iterator[list[Process]]:
    """A process of `module` for the arguments of each order, warm and waiting.

    Raises:
        DataError: one of them ended.
    """
    with ExitStack() as stack:
        processes = [stack.enter_context(_popen(module, order)) for order in orders]
        for process in processes:
            expect(process, READY)
        yield processes


def _popen(module: str, order: Sequence[str]) -> Process:
    command = [sys.executable, "-m", module, *order]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: Process) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended: its next line says so
        print(GO, file=process.stdin, flush=True)


def line(process: Process) -> str:
    """What a process says next; waits for it."""
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    if not found:
        raise DataError(
            f"one of several processes ended with exit status {process.wait()}; its error stands "
            f"above"
        )
    return found


def expect(process: Process, wanted: str) -> None:
    if (found := line(process)) != wanted:
        raise DataError(f"one of several processes said {found[:80]!r}, expected {wanted!r}")


def answer(text: str) -> None:
    """From such a process to the one that started it."""
    print(text, flush=True)
