"""Messages, tables, times and progress as users see them."""

import logging
from collections.abc import Iterator

import pytest

from common import console
from common.console import Rate, clock, log, printable, progress, show_messages, table


@pytest.fixture(autouse=True)
def logger_as_before() -> Iterator[None]:
    handlers, level, propagate = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def test_nothing_is_shown_before_a_command_asks(capsys: pytest.CaptureFixture[str]) -> None:
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.NOTSET)
    log.info("a line")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_lines_on_stdout_and_warnings_on_stderr(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    show_messages(quiet=quiet)
    show_messages(quiet=quiet)  # twice is once
    log.info("a line")
    log.warning("a danger")
    log.error("a failure")
    out, err = capsys.readouterr()
    assert out == ("" if quiet else "a line\n")
    assert err == ("" if quiet else "warning: a danger\n") + "error: a failure\n"


def test_numbers_stand_to_the_right_of_their_column() -> None:
    rows = [("name", "count", "share"), ("a", "1,000", "5.0%"), ("long name", "2", "12.5%")]
    assert table(rows).splitlines() == [
        "name       count  share",
        "a          1,000   5.0%",
        "long name      2  12.5%",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"), (3600, "1:00:00")],
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"), [("ü b", "ü b"), ("a\nb", r"'a\nb'"), ("\x1b[2J", r"'\x1b[2J'")]
)
def test_names_never_move_the_cursor(name: str, text: str) -> None:
    assert printable(name) == text


def test_the_rate_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    rate = Rate(total=100, done=40)  # 40 were done before
    now[0] += console.INTERVAL_S / 2
    rate.add(10)
    assert not rate.due()
    now[0] += console.INTERVAL_S / 2
    rate.add(10)
    assert rate.due() and not rate.due()
    assert (rate.done, rate.per_second, rate.seconds_left) == (60, 4.0, 10.0)


def test_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "INTERVAL_S", 0.0)
    for quiet in (True, False):
        show_messages(quiet=quiet)
        with progress("packing", 2000, "patches") as advance:
            advance(500)
        printed = capsys.readouterr()
        line = "" if quiet else "packing: 500 of 2,000 patches, "
        assert printed.out == "" and printed.err.startswith(line)
        assert bool(printed.err) != quiet
