"""Logs of drivers: one reading for all who follow, and nothing kept for nobody."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from focus_lab.lab.queue.jobs import JobsUnreachableError, MemoryJobs
from service.driver_logs import FRESH_S, DriverLogs


class Talking(MemoryJobs):
    """Jobs that say how often they were asked; a cluster takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def logs(self, job_id: str) -> str:
        self._called("logs")
        time.sleep(0.01)
        self.asked += 1
        return f"{job_id} {self.asked}"


@pytest.fixture
def jobs() -> Talking:
    return Talking()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def logs(jobs: Talking, now: list[float]) -> DriverLogs:
    return DriverLogs(jobs, lambda: now[0])


def test_however_many_follow_a_job_is_read_once_a_second(
    logs: DriverLogs, jobs: Talking, now: list[float]
) -> None:
    with ThreadPoolExecutor(8) as followers:
        for seconds in range(3):
            now[0] = float(seconds)
            told = set(followers.map(lambda _: logs.text("a", FRESH_S), range(30)))
            assert told == {f"a {seconds + 1}"}
    assert logs.text("b", FRESH_S) == "b 4"


def test_whoever_wants_it_fresh_gets_it_fresh(logs: DriverLogs) -> None:
    assert logs.text("a", FRESH_S) == "a 1"
    assert logs.text("a") == "a 2"


def test_what_nobody_follows_any_more_is_not_kept(logs: DriverLogs, now: list[float]) -> None:
    for number in range(100):
        now[0] += 1.0
        logs.text(f"job-{number}", FRESH_S)
    assert len(logs._logs) < 12


def test_a_cluster_that_is_away_is_asked_again(
    logs: DriverLogs, jobs: Talking, now: list[float]
) -> None:
    jobs.reachable = False
    with pytest.raises(JobsUnreachableError):
        logs.text("a", FRESH_S)
    jobs.reachable = True
    assert logs.text("a", FRESH_S) == "a 1"
