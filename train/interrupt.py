"""Ctrl-C and SIGTERM: finish the step and save while training, stop at once otherwise."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Installed once by the main program; `requested` is read between steps."""

    def __init__(self) -> None:
        self.requested = False
        self._can_finish: Callable[[], bool] = lambda: False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    @contextmanager
    def graceful(self, can_finish: Callable[[], bool]) -> Iterator[None]:
        """Inside, a first signal only asks; `can_finish` is False while compiling, say.

        A second Ctrl-C does not wait. A second SIGTERM says nothing new: schedulers tell every
        process, and the launcher passes on what it was told.
        """
        self._can_finish = can_finish
        try:
            yield
        finally:
            self._can_finish = lambda: False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if again and number == signal.SIGTERM:
            return
        if again or not self._can_finish():
            raise KeyboardInterrupt
