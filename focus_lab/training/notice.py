"""When workers ask whether their machine is about to be taken back: by time, at the same steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from focus_lab.training.workers import Workers

_EVERY_S = 5.0
"""A machine may be gone half a minute after the notice, and saving takes its time."""


class NoticeTimes:
    """Says at which steps to ask. A question costs all workers a meeting, so not at each.

    Args:
        workers: of the trial; all count the same steps.
        clock: seconds, never going back; the first worker's decides.
    """

    def __init__(self, workers: Workers, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers, self._clock = workers, clock
        self._asked: tuple[int, float] | None = None
        self._next = 0

    def is_due(self, step: int) -> bool:
        """Whether to ask after this step; every worker must call it after every step.

        Args:
            step: done in all, growing.
        """
        if step < self._next:
            return False
        now, steps = self._clock(), 1
        if self._asked is not None:
            since, then = self._asked
            pace = (now - then) / max(1, step - since)
            steps = int(_EVERY_S / max(pace, 1e-6))
            # A step may become slower than it was: no more than twice as many as last time.
            steps = max(1, min(steps, 2 * (step - since)))
        self._asked = step, now
        self._next = step + int(self._workers.broadcast(steps))
        return True
