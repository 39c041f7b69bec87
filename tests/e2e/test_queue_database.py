"""A real PostgreSQL, killed under a queue at work: nothing is lost, doubled or stuck."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import postgresql
import pytest
from chaos import wait_until

from focus_lab.errors import StoreUnreachableError
from focus_lab.lab.database import Database
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.batch import put_all
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.entry import Filters
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.jobs import JobStatus, MemoryJob, MemoryJobs
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.submission import Submission, Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.plan import plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(postgresql.why_not() is not None, reason=str(postgresql.why_not())),
]
T = TypeVar("T")
COUNT, DEATHS = 60, 3
PAUSE_S = 0.02


def patiently(call: Callable[[], T]) -> T:
    while True:
        try:
            return call()
        except StoreUnreachableError:
            time.sleep(PAUSE_S)


@pytest.fixture
def server() -> Iterator[postgresql.PostgreSQL]:
    with postgresql.server(durable=True) as started:
        yield started


class Cluster:
    """Carries out what is submitted to it, a few at a time, each in a thread."""

    def __init__(self, attempts: Attempts) -> None:
        self.jobs = MemoryJobs((Resources(cpus=6),))
        self.begun: Counter[str] = Counter()
        self._attempts, self._seen = attempts, set[str]()

    def run(self, stop: threading.Event) -> None:
        with ThreadPoolExecutor(6) as pool:
            while not stop.wait(PAUSE_S):
                for job_id, job in list(self.jobs.jobs.items()):
                    if job_id not in self._seen:
                        self._seen.add(job_id)
                        pool.submit(self._drive, job)

    def _drive(self, job: MemoryJob) -> None:
        job.status = JobStatus.RUNNING
        patiently(lambda: self._attempts.begin(job.experiment_id, job.attempt))
        self.begun[job.experiment_id] += 1
        patiently(lambda: self._attempts.report(job.experiment_id, job.attempt, "succeeded", None))
        job.status = JobStatus.ENDED


def test_what_is_submitted_while_its_database_dies_is_carried_out_once(
    server: postgresql.PostgreSQL, tiny_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    url = server.new_database()
    Store(url).close()
    database = Database(url, migrate=False, connections=20)
    queue = Queue(Store(database))
    attempts = Attempts(database, queue.policy)
    cluster = Cluster(attempts)
    dispatcher = Dispatcher(queue, cluster.jobs, Leadership(database, "leader:1:0:0"), "leader")
    base = tiny_experiment()

    def submission(number: int) -> Submission:
        spec = base.model_copy(update={"name": f"e{number:02d}"})
        return Submission(
            spec, plan(spec), tmp_path / spec.name, Submitter(f"u{number % 5}"), key=spec.name
        )

    def submit(numbers: range) -> None:
        left = [submission(number) for number in numbers]
        while left:
            # Whoever gets no answer asks again, with the same key.
            outcomes = put_all(queue, left[:4])
            refused = [
                one for one, outcome in zip(left[:4], outcomes, strict=True)
                if isinstance(outcome, StoreUnreachableError)
            ]  # fmt: skip
            assert all(isinstance(o, StoreUnreachableError | tuple) for o in outcomes), outcomes
            left = refused + left[4:]
            time.sleep(PAUSE_S)

    stop = threading.Event()
    with ThreadPoolExecutor(5) as pool:
        running = [
            pool.submit(dispatcher.run, stop, PAUSE_S),
            pool.submit(cluster.run, stop),
        ]
        parts = [pool.submit(submit, range(n, COUNT, 3)) for n in range(3)]
        try:
            for death in range(1, DEATHS + 1):
                wait_until(
                    lambda death=death: len(cluster.begun) >= death * COUNT // (DEATHS + 2),  # type: ignore[misc]
                    "some have begun", 120,
                )  # fmt: skip
                server.kill_and_restart()
            for part in parts:
                part.result(timeout=120)
            wait_until(
                lambda: patiently(queue.counts) == {"SUCCEEDED": COUNT}, "all have ended", 120
            )
        finally:
            stop.set()
        for thread in running:
            thread.result(timeout=60)
    entries = queue.page(Filters(), limit=1000).entries
    assert sorted(entry.name for entry in entries) == [f"e{n:02d}" for n in range(COUNT)]
    # A database that is away is no reason to begin anything again.
    assert {entry.attempt for entry in entries} == {1}
    assert set(cluster.begun.values()) == {1}
    kinds = Counter(event.kind for event in EventLog(database).after(Cursor(), limit=10**6))
    for kind in ("submitted", "admitted", "started", "reported", "ended"):
        assert kinds[kind] == COUNT
    database.close()
