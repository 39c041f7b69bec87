"""A queue in a store, a clock that a test moves, and ways to bring experiments to any state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.lab.database import Database
from focus_lab.lab.queue.admission import Grant
from focus_lab.lab.queue.attempts import Attempt, Attempts
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

RATIO = "model.token_selection.keep_ratio"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> str:
    """Everything of the queue is the same on both."""
    return str(request.param)


class Clock:
    """The time of stores, on whatever database."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self, database: Database, session: Session) -> datetime:
        return self.at

    def advance(self, **parts: float) -> None:
        self.at += timedelta(**parts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(Database, "now", lambda self, session: made(self, session))
    monkeypatch.setattr(
        Database, "clock", lambda self: sa.literal(made.at, sa.DateTime(timezone=True))
    )
    return made


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store)


@pytest.fixture
def attempts(queue: Queue) -> Attempts:
    return Attempts(queue.store.database, queue.policy)


@pytest.fixture
def log(store: Store) -> EventLog:
    return EventLog(store.database)


@pytest.fixture
def make_spec(tiny_experiment: Callable[..., ExperimentSpec]) -> Callable[..., ExperimentSpec]:
    """Makes the spec of an experiment; one base is validated once."""
    bases: dict[Any, ExperimentSpec] = {}

    def make(name: str = "one", *ratios: float, **compute: Any) -> ExperimentSpec:
        wanted = (ratios or (0.2, 0.5), tuple(sorted(compute.items())))
        if wanted not in bases:
            axes = {RATIO: list(wanted[0])}
            bases[wanted] = tiny_experiment(compute=compute, sweep={"axes": axes})
        return bases[wanted].model_copy(update={"name": name})

    return make


@pytest.fixture
def submit(
    queue: Queue, make_spec: Callable[..., ExperimentSpec], tmp_path: Path
) -> Callable[..., tuple[Entry, bool]]:
    """Submits an experiment."""

    def call(
        name: str = "one",
        *ratios: float,
        user: str = "alice",
        project: str = "default",
        to: Queue | None = None,
        compute: dict[str, Any] | None = None,
        **details: Any,
    ) -> tuple[Entry, bool]:
        spec = make_spec(name, *ratios, **(compute or {}))
        who = Submitter(user, project)
        return (to or queue).submit(spec, plan(spec), tmp_path / name, who, **details)

    return call


@pytest.fixture
def fence(store: Store) -> int:
    """Of a dispatcher that leads."""
    held = Leadership(store.database, "leader", seconds=1e9).hold({})
    assert held is not None
    return held


@pytest.fixture
def admit(attempts: Attempts, fence: int) -> Callable[..., Attempt]:
    """Admits an experiment, and lets its driver begin."""

    def call(entry: Entry, resources: Resources | None = None, *, begin: bool = True) -> Attempt:
        grant = Grant(entry.id, 1, resources or entry.gang.total)
        admitted = attempts.admit(entry, grant, fence, "leader")
        assert admitted is not None
        return attempts.begin(entry.id, admitted.attempt) if begin else attempts.newest(admitted)

    return call


@pytest.fixture
def settle(queue: Queue, attempts: Attempts, fence: int) -> Callable[..., Entry]:
    """Ends the newest attempt of an experiment, with or without a last word of its driver."""

    def call(entry: Entry, outcome: str | None = None, message: str | None = None) -> Entry:
        if outcome:
            attempts.report(entry.id, queue.entry(entry.id).attempt, outcome, message)
        settled = attempts.settle(queue.entry(entry.id), fence, "leader")
        assert settled is not None
        return settled

    return call


@pytest.fixture
def bring(
    queue: Queue,
    submit: Callable[..., tuple[Entry, bool]],
    admit: Callable[..., Attempt],
    settle: Callable[..., Entry],
) -> Callable[..., Entry]:
    """Submits an experiment and brings it to a state."""

    def call(state: QueueState, name: str = "one", **details: Any) -> Entry:
        entry, _ = submit(name, **details)
        match state:
            case QueueState.QUEUED:
                return entry
            case QueueState.PAUSED:
                return queue.act(entry.id, Action.PAUSE, "alice")
            case QueueState.CANCELLED:
                return queue.act(entry.id, Action.CANCEL, "alice")
            case QueueState.STARTING:
                return admit(entry, begin=False).entry
        entry = admit(entry).entry
        match state:
            case QueueState.PAUSING:
                return queue.act(entry.id, Action.PAUSE, "alice")
            case QueueState.CANCELLING:
                return queue.act(entry.id, Action.CANCEL, "alice")
            case QueueState.SUCCEEDED:
                return settle(entry, "succeeded")
            case QueueState.FAILED:
                return settle(entry, "failed", "a trial has no result")
        return entry

    return call


@pytest.fixture
def finish(store: Store) -> Callable[..., None]:
    """Lets one more trial of an experiment succeed."""

    def call(entry: Entry) -> None:
        pending = [t for t in store.trials(entry.id) if t.state is TrialState.PENDING]
        store.move(store.move(pending[0], TrialState.RUNNING), TrialState.SUCCEEDED)

    return call


@pytest.fixture
def check_audit(store: Store, log: EventLog) -> Iterator[Callable[[], None]]:
    """Sees that every version of every experiment has its event, in order; at the end, too."""

    def check() -> None:
        told: dict[str, list[int]] = {}
        last: dict[str, str] = {}
        for event in log.after(Cursor(), limit=10**6):
            if event.experiment_id and "version" in event.data:
                told.setdefault(event.experiment_id, []).append(event.data["version"])
                last[event.experiment_id] = event.data["state"]
        queue = Queue(store)
        for entry_id, versions in told.items():
            entry = queue.entry(entry_id)
            assert versions == list(range(entry.version + 1))
            assert last[entry_id] == entry.state
        assert len(told) == sum(queue.counts().values())

    yield check
    check()
