"""An outage is waited out, for a bounded time; other errors come at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from focus_lab.errors import StoreError, StoreUnreachableError, TrackerUnreachableError
from focus_lab.lab.patience import Patience


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def call() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "answer"

    return call


@pytest.mark.parametrize("error", [StoreUnreachableError("gone"), TrackerUnreachableError("gone")])
def test_what_comes_back_in_time_was_never_away(error: Exception) -> None:
    time, notes = Time(), list[str]()
    patience = Patience(100, notes.append, time.sleep, lambda: time.now)
    assert patience(failing(4, error)) == "answer"
    assert time.slept == [0.5, 1.0, 2.0, 4.0]
    assert notes == ["gone; trying again for 100 s, trials go on"]


def test_pauses_do_not_grow_without_end_and_the_last_try_is_at_the_deadline() -> None:
    time = Time()
    patience = Patience(60, sleep=time.sleep, clock=lambda: time.now)
    with pytest.raises(StoreUnreachableError):
        patience(failing(99, StoreUnreachableError("gone")))
    assert max(time.slept) == 15.0
    assert time.now == 60


def test_other_errors_come_at_once() -> None:
    time = Time()
    patience = Patience(60, sleep=time.sleep, clock=lambda: time.now)
    with pytest.raises(StoreError, match="newer"):
        patience(failing(1, StoreError("made by a newer focus_lab")))
    assert time.slept == []
