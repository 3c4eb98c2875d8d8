"""What the library logs, for tests of programs that show it on the console."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from common.console import log


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Collect what is logged inside, from level INFO on."""
    collector, level = _Collector(), log.level
    log.addHandler(collector)
    log.setLevel(logging.INFO)
    try:
        yield collector.lines
    finally:
        log.setLevel(level)
        log.removeHandler(collector)
