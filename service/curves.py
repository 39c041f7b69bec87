"""Curves of trials, read from the tracker without keeping anything else waiting.

MLflow may be slow, or away: each call may then take minutes. It is asked by threads of its own, and
once it was away nobody asks again for some seconds. A trial that has succeeded has all its numbers:
they are read once, as far as there is room for them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from anyio import CapacityLimiter, to_thread

from focus_lab.client import models
from focus_lab.errors import TrackerError
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Trial
from focus_lab.lab.tracking import Curves, MissingRunError, Tracker

_THREADS = 2
_AWAY_S = 10.0
"""For so long after a failure whoever asks is told of it."""
_MOST_POINTS = 50_000
"""That are kept in all: some megabytes."""

_Key = tuple[str, tuple[str, ...] | None]


class CurveReader:
    """Reads curves.

    Args:
        tracker: gives the tracker; may take seconds, or raise TrackerError.
        clock: seconds.
    """

    def __init__(
        self, tracker: Callable[[], Tracker], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tracker, self._clock = tracker, clock
        self._threads = CapacityLimiter(_THREADS)
        self._trouble: TrackerError | None = None
        self._until = 0.0
        self._kept: OrderedDict[_Key, Curves] = OrderedDict()
        self._points = 0
        self._changing = threading.Lock()

    async def read(self, trials: Iterable[Trial], names: Sequence[str] | None) -> str:
        """Curves by trial, as the JSON of `models.CurveList`.

        Args:
            trials: whose; those that the tracker does not know are left out.
            names: of metrics; None for all.

        Raises:
            TrackerError: the tracker fails, or did some seconds ago.
        """
        return await to_thread.run_sync(self._read, trials, names, limiter=self._threads)

    def _read(self, trials: Iterable[Trial], names: Sequence[str] | None) -> str:
        found = {}
        for trial in trials:
            if trial.tracking_run_id is None:
                continue
            try:
                found[trial.id] = self._curves(trial, trial.tracking_run_id, names)
            except MissingRunError:
                continue
        # Here, and not in the one thread that serves everybody: there may be many points.
        return models.CurveList(items=found).model_dump_json()

    def _curves(self, trial: Trial, run_id: str, names: Sequence[str] | None) -> Curves:
        key = run_id, None if names is None else tuple(sorted(names))
        with self._changing:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        curves = self._asked(run_id, names)
        if trial.state is TrialState.SUCCEEDED:
            self._keep(key, curves)
        return curves

    def _asked(self, run_id: str, names: Sequence[str] | None) -> Curves:
        if self._trouble is not None and self._clock() < self._until:
            raise type(self._trouble)(str(self._trouble))
        try:
            return self._tracker().curves(run_id, names)
        except MissingRunError:
            raise
        except TrackerError as error:
            self._trouble, self._until = error, self._clock() + _AWAY_S
            raise

    def _keep(self, key: _Key, curves: Curves) -> None:
        with self._changing:
            if key not in self._kept:
                self._kept[key] = curves
                self._points += _size(curves)
            # The longest unread goes first.
            while self._points > _MOST_POINTS:
                _, gone = self._kept.popitem(last=False)
                self._points -= _size(gone)


def _size(curves: Curves) -> int:
    # One more, so that there are not endlessly many without points.
    return 1 + sum(map(len, curves.values()))
