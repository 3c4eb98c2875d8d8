"""Console output: messages, tables, progress and times.

Library functions do not print, they log: `log.info` is a line for the user, `log.warning` a
warning. Once a command has called `show_messages`, they appear on stdout and stderr; other
programs see them by the standard rules of `logging` (logger "eqdvae").
"""

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

log = logging.getLogger("eqdvae")

INTERVAL_S = 5.0  # between two lines of progress


STDOUT = "standard output"  # in errors, instead of the name of a file


class _Console(logging.Handler):
    """Print information on stdout as it is, warnings and errors on stderr with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            try:
                print(record.getMessage(), flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:  # of a full disk, say, which names no file
                raise OSError(error.errno, error.strerror, STDOUT) from error
        else:
            line = f"{record.levelname.lower()}: {record.getMessage()}"
            print(line, file=sys.stderr, flush=True)


_CONSOLE = _Console()


def prepare_streams() -> None:
    """Open streams that the shell closed (`2>&-`), and escape what their encoding lacks.

    Without that, the next file that is opened gets their number, and what libraries print.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream
            setattr(sys, name, os.fdopen(handle, "r" if name == "stdin" else "w"))
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        print(
            f"warning: names of files are read as {encoding}, and those with other letters than "
            "ASCII get another name than elsewhere: set PYTHONUTF8=1 or LC_ALL=C.UTF-8",
            file=sys.stderr,
        )


def show_messages(*, quiet: bool = False) -> None:
    """Print what the library logs on stdout and stderr of this process.

    Args:
        quiet: print only errors, as on every rank but the main one, whose warnings are enough.
    """
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.propagate = False
    if _CONSOLE not in log.handlers:
        log.addHandler(_CONSOLE)


def printable(name: str) -> str:
    """Escape `name` if it would move the cursor or break the line."""
    return name if name.isprintable() else ascii(name)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text, the first of which is the header, into columns; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(_align, row, widths)).rstrip() for row in rows)


def _align(text: str, width: int) -> str:
    number = text.strip("%").replace(",", "").replace(".", "").isdigit()
    return text.rjust(width) if number else text.ljust(width)


def clock(seconds: float) -> str:
    """Format as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Rate:
    """Count of units done, their rate since the start, and the time left at that rate."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self._first = total, done, done
        self._start = self._now = self._shown = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        self._now = time.monotonic()

    @property
    def per_second(self) -> float:
        return (self.done - self._first) / max(self._now - self._start, 1e-9)

    @property
    def seconds_left(self) -> float:
        return (self.total - self.done) / max(self.per_second, 1e-9)

    def due(self) -> bool:
        """Whether INTERVAL_S have passed since the last call that returned True, or the start."""
        if self._now - self._shown < INTERVAL_S:
            return False
        self._shown = self._now
        return True


@contextmanager
def progress(task: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of units just done.

    A bar on a terminal, a line every few seconds elsewhere, both on stderr; nothing where
    information is not shown (see `show_messages`).
    """
    if not log.isEnabledFor(logging.INFO):
        yield lambda count: None
    elif sys.stderr.isatty():
        with _bar(task, total, unit) as advance:
            yield advance
    else:
        yield _lines(task, total, unit)


@contextmanager
def _bar(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit),
        rich_progress.TextColumn("{task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
    )
    rate = Rate(total)
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, rate="")

        def advance(count: int) -> None:
            rate.add(count)
            bar.update(task, advance=count, rate=f"{rate.per_second:,.0f}/s")

        yield advance


def _lines(name: str, total: int, unit: str) -> Callable[[int], None]:
    rate = Rate(total)

    def advance(count: int) -> None:
        rate.add(count)
        if rate.due():
            print(
                f"{name}: {rate.done:,} of {total:,} {unit}, {rate.per_second:,.0f}/s, "
                f"{rate.seconds_left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    return advance
