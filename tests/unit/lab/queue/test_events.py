"""The event log: complete and in order, whoever writes at the same time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy as sa

from focus_lab.errors import UserError
from focus_lab.lab.queue.admission import Grant
from focus_lab.lab.queue.attempts import Attempts, SupersededError
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, Event, EventLog, write_event
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import ActiveError, NotAllowedError, Queue
from focus_lab.lab.queue.states import Action
from focus_lab.lab.store import Store
from focus_lab.lab.tables import EventRow

Submit = Callable[..., tuple[Entry, bool]]


def write(store: Store, *kinds: str, experiment_id: str | None = None) -> None:
    for kind in kinds:
        with store.database.session() as session:
            write_event(session, store.database, experiment_id, kind, "somebody", {"a": [1]})


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_events_are_read_in_order_from_any_place(store: Store, log: EventLog) -> None:
    assert log.newest() == Cursor()
    assert log.after(Cursor()) == []
    write(store, "a", "b", "c", "d")
    events = log.after(Cursor())
    assert kinds(events) == ["a", "b", "c", "d"]
    assert (events[0].actor, events[0].data, events[0].experiment_id) == (
        "somebody",
        {"a": [1]},
        None,
    )
    assert abs(events[3].at - events[0].at) < timedelta(minutes=1)
    assert [event.cursor for event in events] == sorted({event.cursor for event in events})
    for number, event in enumerate(events):
        assert log.after(Cursor.parse(str(event.cursor))) == events[number + 1 :]
    assert log.newest() == events[-1].cursor
    assert kinds(log.after(events[0].cursor, limit=2)) == ["b", "c"]


def test_events_of_one_experiment(store: Store, log: EventLog) -> None:
    write(store, "a", "b", experiment_id="1" * 32)
    write(store, "c")
    write(store, "d", experiment_id="2" * 32)
    write(store, "e", experiment_id="1" * 32)
    assert kinds(log.after(Cursor(), experiment_id="1" * 32)) == ["a", "b", "e"]
    assert kinds(log.after(Cursor(), experiment_id="3" * 32)) == []


def test_what_is_taken_back_leaves_no_event(store: Store, log: EventLog) -> None:
    def write_and_die() -> None:
        with store.database.session() as session:
            write_event(session, store.database, None, "never", "somebody", {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_die()
    write(store, "kept")
    assert kinds(log.after(Cursor())) == ["kept"]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "text", ["", "1", "-1-2", "1-2-3", "a-b", "1-2\n", "1-" + "9" * 30, "\u0967-\u0968"]
)
def test_what_is_no_place_in_the_log_is_said(text: str, database: str) -> None:
    with pytest.raises(UserError, match="Last-Event-ID: is no place in the log, got"):
        Cursor.parse(text)


@pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_an_event_waits_for_those_that_may_still_come_before_it(
    store: Store, log: EventLog
) -> None:
    with store.database.session() as session:
        write_event(session, store.database, None, "began first", "somebody", {})
        write(store, "committed first")
        # Whoever read this one now would go on after it, and miss the other.
        assert log.after(Cursor()) == []
        assert log.newest() == Cursor()
    assert kinds(log.after(Cursor())) == ["began first", "committed first"]


def test_events_that_were_restored_from_another_server_come_before_all_others(
    store: Store, log: EventLog, database: str
) -> None:
    write(store, "a", "b", "c")
    seen = log.after(Cursor())
    if database == "postgresql":
        # The server that they come from had counted further than this one.
        with store.database.session() as session:
            session.execute(
                sa.update(EventRow).values(transaction=EventRow.transaction + 1_000_000)
            )
        before = Cursor(seen[1].cursor.transaction + 1_000_000, seen[1].cursor.id)
        assert log.after(Cursor()) == []
    else:
        before = seen[1].cursor
    log.adopt()
    write(store, "d")
    log.adopt()
    assert kinds(log.after(Cursor())) == ["a", "b", "c", "d"]
    # Whoever had seen the second before goes on after it.
    assert kinds(log.after(before)) == ["c", "d"]
    write(store, "e")
    assert kinds(log.after(log.after(Cursor())[3].cursor)) == ["e"]


def test_a_reader_misses_nothing_and_sees_nothing_twice_while_many_write(
    store: Store, submit: Submit, fence: int, database: str, log: EventLog
) -> None:
    """Eight writers on four experiments; one reader who goes on from where it was."""
    queue = Queue(store, Policy.model_validate({"max_losses": 10**6}))
    attempts = Attempts(store.database, queue.policy)
    ids = [submit(f"e{number}")[0].id for number in range(4)]
    steps = 40 if database == "postgresql" else 12
    over = threading.Event()
    seen: list[Event] = []

    def read() -> None:
        last = False
        while True:
            cursor = seen[-1].cursor if seen else Cursor()
            found = log.after(cursor, limit=7)
            seen.extend(found)
            if not found:
                if last:
                    return
                last = over.is_set()

    def change(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(steps):
            entry = queue.entry(chance.choice(ids))
            try:
                match chance.randrange(6):
                    case 0:
                        attempts.admit(entry, Grant(entry.id, 1, entry.gang.total), fence, "leader")
                    case 1:
                        attempts.begin(entry.id, entry.attempt)
                    case 2 if entry.state.is_admitted:
                        attempts.report(entry.id, entry.attempt, "failed", "why")
                    case 3 if entry.state.is_admitted:
                        attempts.settle(entry, fence, "leader")
                    case 4:
                        queue.set_priority(entry.id, chance.randrange(1000), "somebody")
                    case _:
                        queue.act(entry.id, chance.choice(list(Action)), "somebody")
            except (NotAllowedError, ActiveError, SupersededError):
                pass

    with ThreadPoolExecutor(9) as pool:
        reader = pool.submit(read)
        try:
            list(pool.map(change, range(8)))
        finally:
            over.set()
        reader.result(60)
    with store.database.reading() as session:
        written = set(session.scalars(sa.select(EventRow.id)))
    assert sorted(event.cursor.id for event in seen) == sorted(written)
    assert [event.cursor for event in seen] == sorted(event.cursor for event in seen)
    for entry_id in ids:
        told = [event for event in seen if event.experiment_id == entry_id]
        assert [event.data["version"] for event in told] == list(range(len(told)))
        now = queue.entry(entry_id)
        assert (told[-1].data["version"], told[-1].data["state"]) == (now.version, now.state)
    assert len(seen) > 8 * steps / 4
