"""Of several dispatchers one leads; what an older one still wants to write is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from focus_lab.lab.lease import _machine
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.leadership import (
    DISPATCHER,
    FencedError,
    Leadership,
    check_fence,
    drain,
    is_draining,
    leader,
)
from focus_lab.lab.store import Store
from focus_lab.lab.tables import LeadRow

on_postgresql = pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)


def check(store: Store, fence: int) -> None:
    with store.database.session() as session:
        check_fence(session, fence)


def test_one_leads_until_its_time_is_over(store: Store, log: EventLog, clock: Any) -> None:
    first, second = (Leadership(store.database, name, seconds=15) for name in ("first", "second"))
    assert leader(store.database) is None
    assert first.hold({"nodes": 1}) == 1
    assert second.hold({}) is None
    clock.advance(seconds=10)
    assert first.hold({"nodes": 2}) == 1  # renewed
    clock.advance(seconds=10)
    assert second.hold({}) is None
    found = leader(store.database)
    assert found is not None
    assert (found.owner, found.fence, found.told) == ("first", 1, {"nodes": 2})
    clock.advance(seconds=5.1)
    assert leader(store.database) is None
    check(store, 1)  # nobody has taken over yet
    assert second.hold({}) == 2
    with pytest.raises(FencedError, match="another one leads, got fence 1; it is 2 by now"):
        check(store, 1)
    check(store, 2)
    assert first.hold({}) is None
    events = log.after(Cursor())
    assert [(event.kind, event.actor, event.data["fence"]) for event in events] == [
        ("dispatcher", "first", 1),
        ("dispatcher", "second", 2),
    ]


def test_a_leader_may_give_up(store: Store, clock: Any) -> None:
    first, second = (Leadership(store.database, name) for name in ("first", "second"))
    first.hold({})
    second.give_up()  # does not lead: nothing happens
    assert second.hold({}) is None
    first.give_up()
    assert leader(store.database) is None
    assert second.hold({}) == 2
    # Whoever comes back leads anew, with another fence.
    second.give_up()
    assert first.hold({}) == 3


def test_a_leader_that_was_killed_on_this_machine_is_followed_at_once(
    store: Store, clock: Any
) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    killed = Leadership(store.database, f"{_machine()}:{process.pid}:5:0a1b2c3d")
    assert killed.hold({}) == 1
    assert Leadership(store.database, "second").hold({}) == 2


def test_before_anybody_has_led_nobody_may_write(store: Store) -> None:
    with pytest.raises(FencedError):
        check(store, 1)


def test_of_many_who_want_to_lead_at_once_one_does(store: Store) -> None:
    for _ in range(3):
        ready = threading.Barrier(5)

        def hold(number: int, ready: threading.Barrier = ready) -> int | None:
            ready.wait(30)
            return Leadership(store.database, f"machine-{number}:1:2:3", seconds=60).hold({})

        with ThreadPoolExecutor(5) as pool:
            fences = list(pool.map(hold, range(5)))
        assert sum(fence is not None for fence in fences) == 1
        with store.database.session() as session:
            session.execute(sa.update(LeadRow).values(owner=None))


@on_postgresql
def test_whoever_waited_for_the_lock_sees_who_has_become_the_leader(store: Store) -> None:
    late = Leadership(store.database, "late")
    late.hold({})
    late.give_up()  # there is a row, and it is free
    with ThreadPoolExecutor(1) as pool:
        with store.database.session() as session:
            row = session.get_one(LeadRow, DISPATCHER, with_for_update=True)
            waiting = pool.submit(late.hold, {})
            locks = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            deadline = time.monotonic() + 30
            while not session.scalar(locks):
                assert time.monotonic() < deadline
            row.owner, row.fence = "early", row.fence + 1
            row.expires_at = store.database.now(session).replace(year=2999)
        assert waiting.result(30) is None
    found = leader(store.database)
    assert found is not None
    assert (found.owner, found.fence) == ("early", 2)


@on_postgresql
def test_whoever_takes_over_waits_for_what_the_former_one_is_writing(store: Store) -> None:
    first = Leadership(store.database, "first", seconds=-1)
    fence = first.hold({})
    assert fence is not None
    with ThreadPoolExecutor(1) as pool:
        with store.database.session() as session:
            check_fence(session, fence)
            second = pool.submit(Leadership(store.database, "second").hold, {})
            locks = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            deadline = time.monotonic() + 30
            while not session.scalar(locks):
                assert time.monotonic() < deadline
            assert not second.done()
        assert second.result(30) == 2


def test_draining_is_told_once_and_ended_once(store: Store, log: EventLog) -> None:
    assert not is_draining(store.database)
    drain(store.database, "root", on=False)  # it was not
    for _ in range(2):
        drain(store.database, "root", on=True)
        assert is_draining(store.database)
    for _ in range(2):
        drain(store.database, "carol", on=False)
        assert not is_draining(store.database)
    events = log.after(Cursor())
    assert [(event.kind, event.actor, event.data) for event in events] == [
        ("drain", "root", {"on": True}),
        ("drain", "carol", {"on": False}),
    ]
