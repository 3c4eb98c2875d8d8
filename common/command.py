"""Start and end of every command: arguments, messages and exit status."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from common.console import show_messages
from common.errors import DataError

DONE = 0
UNUSABLE_DATA = FAILED = 1
UNUSABLE_ARGUMENTS = 2
STOPPED = 75  # a signal ended training or a sweep after it had saved: run it again
INTERRUPTED = 130  # Ctrl-C


def run_command(
    prog: str,
    arguments: Callable[..., Callable[[], int | None]],
    interrupted: str = "the same command continues where this one stopped",
    config: tuple[Any, ...] = (),
) -> int:
    """Parse the command line into an action, run it, and return the exit status.

    0 done, 1 unusable data or an error of the system, 2 unusable arguments, 130 interrupted, or
    what the action returns. Any other error is a fault of the program and keeps its traceback.

    Args:
        prog: module of the command, as in `python -m PROG`.
        arguments: called by tyro with the parsed arguments; returns the action, which may return
            an exit status.
        interrupted: message after Ctrl-C.
        config: `tyro.conf` markers for the whole command line.
    """
    import tyro  # slow, and not needed by modules that only import an exit status

    try:
        action = tyro.cli(arguments, prog=f"python -m {prog}", config=config)
    except ValueError as error:  # a dataclass refused a value
        return _end(f"error: {error}", UNUSABLE_ARGUMENTS)
    show_messages()
    try:
        return action() or DONE
    except DataError as error:
        return _end(f"error: {error}", UNUSABLE_DATA)
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # no such output, as after `>&-`
            # Python flushes its output at exit, which would be another error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _end("error: what read the output of this command has ended", UNUSABLE_DATA)
    except OSError as error:  # of a disk, say
        return _end(f"error: {error}", UNUSABLE_DATA)
    except KeyboardInterrupt:
        return _end(f"interrupted: {interrupted}", INTERRUPTED)


def _end(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
