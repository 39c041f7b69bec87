"""Reports of experiments that still run: when they are written, and when no more."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from focus_lab.errors import TrackerUnreachableError
from focus_lab.lab.interim_report import InterimReport

_LONG_S = 30.0


class Written:
    """Counts what is written; a test may hold it up."""

    def __init__(self, error: Exception | None = None) -> None:
        self.times = 0
        self._error = error
        self.begun, self.may_end = threading.Semaphore(0), threading.Event()
        self.may_end.set()

    def __call__(self) -> None:
        self.begun.release()
        assert self.may_end.wait(_LONG_S)
        self.times += 1
        if self._error:
            raise self._error

    def wait(self) -> None:
        assert self.begun.acquire(timeout=_LONG_S)


def test_it_is_written_after_a_trial_has_ended() -> None:
    written = Written()
    with InterimReport(written, first_s=0.0) as report:
        report.trial_ended()
        written.wait()
    assert written.times == 1


def test_a_short_experiment_has_none() -> None:
    written = Written()
    with InterimReport(written) as report:
        report.trial_ended()
        report.trial_ended()
    assert written.times == 0


def test_what_ends_while_one_is_written_is_in_the_next() -> None:
    written = Written()
    written.may_end.clear()
    with InterimReport(written, first_s=0.0) as report:
        report.trial_ended()
        written.wait()
        report.trial_ended()
        written.may_end.set()
        written.wait()
    assert written.times == 2


def test_one_that_is_being_written_is_written_to_its_end_and_no_other_begins() -> None:
    written = Written()
    written.may_end.clear()
    report = InterimReport(written, first_s=0.0)
    leaving = threading.Thread(target=report.__exit__, args=(None, None, None))
    report.trial_ended()
    written.wait()
    report.trial_ended()
    leaving.start()
    leaving.join(0.05)
    assert leaving.is_alive()
    written.may_end.set()
    leaving.join(_LONG_S)
    report.trial_ended()
    assert written.times == 1


@pytest.mark.parametrize(
    "make", [lambda: TrackerUnreachableError("away"), lambda: OSError("no space left")]
)
def test_what_is_in_its_way_is_left_to_the_last_one(make: Callable[[], Exception]) -> None:
    written = Written(make())
    with InterimReport(written, first_s=0.0) as report:
        report.trial_ended()
        written.wait()
    assert written.times == 1
