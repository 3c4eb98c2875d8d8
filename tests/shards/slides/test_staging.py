"""Work shared by threads comes back in order, and an error leaves the rest undone."""

import time

import pytest

from shards.slides.staging import in_turn


def test_results_are_in_order() -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i * i

    assert list(in_turn(work, range(30), workers=4)) == [(i, i * i) for i in range(30)]


def test_an_error_cancels_what_has_not_begun() -> None:
    done: list[int] = []

    def work(i: int) -> None:
        if i == 3:
            raise KeyError(i)
        time.sleep(0.005)
        done.append(i)

    with pytest.raises(KeyError):
        list(in_turn(work, range(1000), workers=2))
    assert {0, 1, 2} <= {*done} and len(done) < 20
