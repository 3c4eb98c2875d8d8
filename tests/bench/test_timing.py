"""Timers time only what they name; parts of a step add up to it."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch

from bench import steps, timing
from bench.records import Spread

CPU = torch.device("cpu")


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> Callable[..., None]:
        def call(*_: Any) -> None:
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_timer_gives_the_mean_of_a_call(clock: Clock) -> None:
    clock.work(5.0)()
    assert timing.timed(clock.work(0.25), 4, CPU) == 0.25


def test_rounds_alternate_their_direction() -> None:
    order, ticks = [], count()

    def block(name: str) -> Callable[[], float]:
        def call() -> float:
            order.append(name)
            return float(next(ticks))

        return call

    values = timing.rounds({n: block(n) for n in "abc"}, 2)
    assert "".join(order) == "abccba"
    assert values == {"a": [0, 5], "b": [1, 4], "c": [2, 3]}


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)


def test_spans_see_the_calls_inside_them(clock: Clock) -> None:
    spans = timing.Spans(CPU)
    inner = spans.around("inner", clock.work(2.0))

    def outer() -> str:
        clock.now += 1.0
        inner()
        return "result"

    watched = spans.around("outer", outer)
    assert [watched(), watched()] == ["result"] * 2
    assert spans.seconds() == {"inner": [2.0, 2.0], "outer": [3.0, 3.0]}


def test_steps_are_timed_only_when_the_loader_is_at_its_pace(clock: Clock) -> None:
    def source() -> Iterator[float]:
        for step in count():
            yield 100.0 if step < steps.WARMUP else 1.0

    assert steps.paced(lambda seconds: clock.work(seconds)(), source(), 3, CPU) == 1.0


def test_the_parts_of_a_step_add_up_to_it(clock: Clock) -> None:
    spans = timing.Spans(CPU)
    copy = spans.around("copy", clock.work(1.0))
    corrupt = spans.around("corrupt", clock.work(4.0))

    def load() -> None:
        clock.now += 2.0
        copy()
        copy()

    def step() -> None:
        watched["load"]()
        watched["forward"]()
        clock.now += 0.5

    watched: dict[str, Callable[[], None]] = {
        "load": spans.around("load", load),
        "forward": spans.around("forward", lambda: (corrupt(), clock.work(8.0)())),
    }
    whole = spans.around(steps.STEP, step)
    for _ in range(steps.WARMUP + 3):
        whole()
    total, seconds = steps.step_parts(spans.seconds())
    assert total.tolist() == [16.5] * 3
    expected = {"copy": 2.0, "load": 2.0, "corrupt": 4.0, "forward": 8.0, steps.REMAINDER: 0.5}
    assert {name: values.tolist() for name, values in seconds.items()} == {
        name: [value] * 3 for name, value in expected.items()
    }
