"""Ctrl-C and SIGTERM: finish the step and save while training, stop at once otherwise."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Signal handlers of the main program; `requested` is read between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._can_finish: Callable[[], bool] = lambda: False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextmanager
    def graceful(self, can_finish: Callable[[], bool]) -> Iterator[None]:
        """Inside, a first signal only sets `requested`, unless `can_finish()` is False.

        A second Ctrl-C ends the process at once. A second SIGTERM is ignored: schedulers signal
        every process, and the launcher passes the signal on.
        """
        self._can_finish = can_finish
        try:
            yield
        finally:
            self._can_finish = lambda: False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated, self.requested = self.requested, True
        if repeated and number == signal.SIGTERM:
            return
        if repeated or not self._can_finish():
            raise KeyboardInterrupt
