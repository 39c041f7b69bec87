"""A store, a cluster in memory, dispatchers and drivers, any of which may die at any moment."""

from __future__ import annotations

import contextlib
import itertools
import random
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import pytest

from focus_lab.errors import StoreUnreachableError
from focus_lab.lab.database import Database
from focus_lab.lab.queue.attempts import Attempts, SupersededError
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.entry import Entry, Filters
from focus_lab.lab.queue.jobs import JobStatus, JobsUnreachableError, MemoryJob, MemoryJobs
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import LeaseHeldError, StaleTrialError, Store

S = QueueState
T = TypeVar("T")
LEASE_S = 60.0
TICK_S = 5.0


class Killed(BaseException):
    """Kill -9: nothing of the process goes on."""


@dataclass
class Fate:
    """Kills at points: before and after every commit, and every call of the cluster."""

    chance: random.Random = field(default_factory=lambda: random.Random(0))
    share: float = 0.0
    """Of the points at which somebody dies."""
    at: int | None = None
    """Number of the one point at which somebody dies."""
    ids: random.Random = field(default_factory=lambda: random.Random(0))
    """Of experiments: what was submitted at one moment is in the same order in every run."""
    points: int = 0
    deaths: int = 0
    store_away: bool = False
    calm: bool = False

    def point(self) -> None:
        if self.calm:
            return
        self.points += 1
        if self.points == self.at or (self.share and self.chance.random() < self.share):
            self.deaths += 1
            raise Killed

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        before = self.calm, self.store_away
        self.calm, self.store_away = True, False
        yield
        self.calm, self.store_away = before


def fated(monkeypatch: pytest.MonkeyPatch) -> Fate:
    """A fate that comes to whoever uses a store."""
    made = Fate()
    session, reading = Database.session, Database.reading

    @contextlib.contextmanager
    def fatal(self: Database) -> Iterator[Any]:
        if made.store_away:
            raise StoreUnreachableError
        with session(self) as opened:
            yield opened
            made.point()
        made.point()

    @contextlib.contextmanager
    def read(self: Database) -> Iterator[Any]:
        if made.store_away:
            raise StoreUnreachableError
        with reading(self) as opened:
            yield opened

    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=made.ids.getrandbits(128), version=4))
    monkeypatch.setattr(Database, "session", fatal)
    monkeypatch.setattr(Database, "reading", read)
    return made


@dataclass
class Process:
    """A driver that somewhere carries out a job."""

    job: MemoryJob
    steps: Generator[None, None, None]
    sleeps: int = 0
    """Ticks that it does not run; its lease may run out meanwhile."""


class World:
    """A store, a cluster with drivers, dispatchers and users, played tick by tick."""

    def __init__(
        self, store: Store, clock: Any, fate: Fate, cores: float = 8.0, **policy: Any
    ) -> None:
        self.store, self.clock, self.fate = store, clock, fate
        self.queue = Queue(store, Policy.model_validate({"max_losses": 10**6} | policy))
        self.attempts = Attempts(store.database, self.queue.policy)
        self.jobs = MemoryJobs((Resources(cores),), on_call=lambda name: fate.point())
        self.drivers: list[Process] = []
        self.carried_out: dict[str, str] = {}
        """Experiment -> the driver that carries it out, by the name on its lease."""
        self.renewed: dict[str, datetime] = {}
        """Driver -> when it last took its lease."""
        self.numbers = itertools.count(1)
        self.dispatchers = [self.new_dispatcher()]

    def new_dispatcher(self) -> Dispatcher:
        name = f"elsewhere:{next(self.numbers)}:0:0"
        # Nothing of the former one is left.
        queue = Queue(Store(self.store.database), self.queue.policy)
        return Dispatcher(queue, self.jobs, Leadership(self.store.database, name), name)

    def may_die(self, call: Callable[[], T]) -> T | None:
        """What a process does that may die of it, or find that the others do not answer."""
        try:
            return call()
        except (Killed, StoreUnreachableError, JobsUnreachableError):
            return None

    # What a driver does: as lab/queue/job.py

    def patiently(self, call: Callable[[], T]) -> Generator[None, None, T]:
        while True:
            try:
                return call()
            except StoreUnreachableError:
                yield

    def drive(self, job: MemoryJob) -> Generator[None, None, None]:
        owner = f"elsewhere:{next(self.numbers)}:0:0"
        store, mine = self.store, job.experiment_id

        def renew() -> None:
            store.take_lease(mine, owner, LEASE_S, set())
            self.renewed[owner] = self.clock.at

        yield from self.patiently(renew)
        running = None
        try:
            yield from self.patiently(lambda: self.attempts.begin(mine, job.attempt))
            # One whose lease ran out, asleep or cut off, is not told; it finds out when it renews.
            other = self.carried_out.get(mine)
            assert other is None or self.has_lapsed(other), "two drivers carry out one experiment"
            self.carried_out[mine] = owner
            for trial in (yield from self.patiently(lambda: store.trials(mine))):
                if trial.state is TrialState.SUCCEEDED:
                    continue
                if trial.state is TrialState.RUNNING:  # of a driver that was lost
                    put_back = trial
                    trial = yield from self.patiently(
                        lambda put_back=put_back: store.move(put_back, TrialState.PENDING)  # type: ignore[misc]
                    )
                running = yield from self.patiently(
                    lambda trial=trial: store.move(trial, TrialState.RUNNING)  # type: ignore[misc]
                )
                for _ in range(2):
                    yield
                    with contextlib.suppress(StoreUnreachableError):
                        renew()  # trials go on while the store is away
                done = running
                yield from self.patiently(
                    lambda done=done: store.move(done, TrialState.SUCCEEDED)  # type: ignore[misc]
                )
                running = None
            yield from self.patiently(
                lambda: self.attempts.report(mine, job.attempt, "succeeded", None)
            )
        except KeyboardInterrupt:
            if running is not None:
                store.move(running, TrialState.PENDING)
        except SupersededError:
            pass
        finally:
            if self.carried_out.get(mine) == owner:
                del self.carried_out[mine]
        store.drop_lease(mine, owner)

    def has_lapsed(self, driver: str) -> bool:
        return bool(self.clock.at - self.renewed[driver] > timedelta(seconds=LEASE_S))

    def step(self, driver: Process) -> None:
        """One tick of a driver; what ends it ends its job."""
        if driver.sleeps:
            driver.sleeps -= 1
            return
        try:
            if driver.job.stop_asked:
                driver.steps.throw(KeyboardInterrupt)
            else:
                next(driver.steps)
        except (
            StopIteration,
            Killed,
            KeyboardInterrupt,
            LeaseHeldError,
            StaleTrialError,
            StoreUnreachableError,
        ):
            driver.steps.close()
            driver.job.status = JobStatus.ENDED
            self.drivers.remove(driver)

    # The cluster

    def start_jobs(self) -> None:
        for job in self.jobs.jobs.values():
            if job.status is JobStatus.PENDING and self.fate.chance.random() < 0.7:
                job.status = JobStatus.RUNNING
                self.drivers.append(Process(job, self.drive(job)))

    def restart_cluster(self, survivors: float = 0.0) -> None:
        """It forgets its jobs; most drivers die with it, some live on unknown."""
        self.jobs.jobs.clear()
        for driver in list(self.drivers):
            if self.fate.chance.random() >= survivors:
                driver.steps.close()
                self.drivers.remove(driver)

    def tick(self) -> None:
        self.clock.advance(seconds=TICK_S)
        self.start_jobs()
        for driver in list(self.drivers):
            self.step(driver)
        for number, dispatcher in enumerate(self.dispatchers):
            deaths = self.fate.deaths
            self.may_die(dispatcher.round)
            if self.fate.deaths > deaths:
                self.dispatchers[number] = self.new_dispatcher()
        with self.fate.asleep():
            self.check()

    def check(self) -> None:
        """What holds at any moment."""
        held = self.attempts.open()
        total = sum((attempt.granted for attempt in held), Resources())
        assert self.jobs.nodes[0].holds(total)
        admitted = {entry.id for entry in self.entries() if entry.state.is_admitted}
        assert sorted(attempt.entry.id for attempt in held) == sorted(admitted)

    def entries(self) -> list[Entry]:
        return list(self.queue.page(Filters(), limit=10**6).entries)

    def until_rest(self, ticks: int) -> None:
        """In peace everything comes to its end, or somewhere it is stuck."""
        self.fate.calm, self.fate.store_away, self.jobs.reachable = True, False, True
        for _ in range(ticks):
            waiting = [entry for entry in self.entries() if not entry.state.is_terminal]
            for entry in waiting:
                if entry.state is S.PAUSED:
                    self.queue.act(entry.id, Action.RESUME, "alice")
            if not waiting and not self.drivers:
                return
            self.tick()
        raise AssertionError(f"stuck are {waiting}")

    def all_is_done(self, entry: Entry) -> bool:
        states = {trial.state for trial in self.store.trials(entry.id)}
        return entry.state is S.SUCCEEDED and states == {TrialState.SUCCEEDED}
