"""Patience with the store and the tracker: servers are restarted, networks come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from focus_lab.errors import (
    StorageUnreachableError,
    StoreUnreachableError,
    TrackerUnreachableError,
)

T = TypeVar("T")

_OUTAGES = (StoreUnreachableError, TrackerUnreachableError, StorageUnreachableError)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0


class Patience:
    """Repeats calls that an outside system did not answer, for a bounded time.

    Trials train on meanwhile: they need neither store nor tracker.

    Args:
        seconds: how long one call is repeated.
        note: told once an outage, with a sentence.
        sleep: waits for seconds.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        seconds: float = 600.0,
        note: Callable[[str], None] = lambda text: None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._note = seconds, note
        self._sleep, self._clock = sleep, clock

    def __call__(self, call: Callable[[], T]) -> T:
        """Call until it is answered; what else it raises comes at once.

        Raises:
            StoreUnreachableError: the time is over.
            TrackerUnreachableError: the time is over.
            StorageUnreachableError: the time is over.
        """
        deadline = self._clock() + self._seconds
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return call()
            except _OUTAGES as error:
                left = deadline - self._clock()
                if left <= 0:
                    raise
                if pause == _FIRST_PAUSE_S:
                    self._note(f"{error}; trying again for {left:.0f} s, trials go on")
                self._sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
