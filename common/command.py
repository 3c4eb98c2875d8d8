"""Start and end of every command: arguments, messages and exit status."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from common.console import STDOUT, prepare_streams, show_messages
from common.errors import DataError

DONE = 0
UNUSABLE_DATA = FAILED = 1
UNUSABLE_ARGUMENTS = 2
STOPPED = 75  # a signal other than Ctrl-C ended it, training after it had saved: run it again
INTERRUPTED = 130  # Ctrl-C

AGAIN_S = 0.02  # after which the finalizer that ignored an interruption has ended
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # by schedulers and closed terminals


class StoppedError(KeyboardInterrupt):
    """A signal of STOPPING came: as Ctrl-C, no handler of errors may hold it up."""


@contextmanager
def interruptions_kept() -> Iterator[None]:
    """Raise a KeyboardInterrupt again inside where Python ignored it.

    It does so in finalizers and callbacks of weak references, which run at any moment.
    """
    before = sys.unraisablehook

    def look(ignored: Any) -> None:
        if not isinstance(ignored.exc_value, KeyboardInterrupt):
            before(ignored)
            return
        kind, text = ignored.exc_type, str(ignored.exc_value)

        def again(number: int, frame: FrameType | None) -> None:
            raise kind(text)

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise StoppedError inside at a signal of STOPPING; later ones are ignored.

    Those that are ignored, as nohup lets SIGHUP be, or handled otherwise stay so.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)
        raise StoppedError(signal.Signals(number).name)

    is_main = threading.current_thread() is threading.main_thread()  # who alone may handle any
    handled = [n for n in STOPPING if is_main and signal.getsignal(n) is signal.SIG_DFL]
    for each in handled:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.SIG_DFL)


def run_command(
    prog: str,
    arguments: Callable[..., Callable[[], int | None]],
    interrupted: str = "the same command continues where this one stopped",
    config: tuple[Any, ...] = (),
) -> int:
    """Parse the command line into an action, run it, and return the exit status.

    0 done, 1 unusable data or an error of the system, 2 unusable arguments, 75 stopped by a signal,
    130 interrupted by Ctrl-C, or what the action returns. Any other error is a fault of the program
    and keeps its traceback.

    Args:
        prog: module of the command, as in `python -m PROG`.
        arguments: called by tyro with the parsed arguments; returns the action, which may return
            an exit status.
        interrupted: message after Ctrl-C or another signal.
        config: `tyro.conf` markers for the whole command line.
    """
    prepare_streams()
    try:
        with stopped_by_signals(), interruptions_kept():
            return _run(prog, arguments, config)
    except DataError as error:
        return _end(f"error: {error}", UNUSABLE_DATA)
    except BrokenPipeError:
        _discard_output()
        return _end("error: what read the output of this command has ended", UNUSABLE_DATA)
    except OSError as error:  # of a disk, say
        return _end(f"error: {_named(error)}", UNUSABLE_DATA)
    except StoppedError as error:
        return _end(f"stopped by {error}: {interrupted}", STOPPED)
    except KeyboardInterrupt:
        return _end(f"interrupted: {interrupted}", INTERRUPTED)


def _run(prog: str, arguments: Callable[..., Callable[[], int | None]], config: Any) -> int:
    import tyro  # slow, and not needed by modules that only import an exit status

    try:
        action = tyro.cli(arguments, prog=f"python -m {prog}", config=config)
    except ValueError as error:  # a dataclass refused a value
        return _end(f"error: {error}", UNUSABLE_ARGUMENTS)
    show_messages()
    status = action() or DONE
    sys.stdout.flush()
    return status


def _named(error: OSError) -> OSError:
    """Name the standard output in an error of printing, such as that of a full disk."""
    if error.filename not in (None, STDOUT):
        return error
    try:
        print(flush=True)
    except OSError:
        _discard_output()
        return OSError(error.errno, error.strerror, STDOUT)
    return error


def _discard_output() -> None:
    """Let Python flush its output at exit without another error."""
    with suppress(OSError, ValueError):  # no such output, as after `>&-`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status
