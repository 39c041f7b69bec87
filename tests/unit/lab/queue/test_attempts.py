"""Attempts: what an admission holds, whose word counts, and what follows from an end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from focus_lab.lab.queue.admission import Grant, Holding
from focus_lab.lab.queue.attempts import Attempt, Attempts, SupersededError
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.changes import NoEntryError
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.leadership import FencedError, Leadership
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import AttemptRow, EventRow, QueueRow

pytestmark = pytest.mark.usefixtures("check_audit")
Submit = Callable[..., tuple[Entry, bool]]
Bring = Callable[..., Entry]
S = QueueState


def everything(store: Store) -> list[Any]:
    with store.database.reading() as session:
        return [
            session.execute(sa.select(table.__table__)).all()
            for table in (QueueRow, AttemptRow, EventRow)
        ]


def test_an_attempt_from_its_grant_to_its_end(
    queue: Queue, attempts: Attempts, submit: Submit, fence: int, log: EventLog, clock: Any
) -> None:
    entry, _ = submit(project="vision")
    grant = Grant(entry.id, 2, Resources(2, 1))
    admitted = attempts.admit(entry, grant, fence, "leader")
    assert admitted is not None
    assert (admitted.state, admitted.attempt, admitted.version) == (S.STARTING, 1, 1)
    assert admitted.job_id == f"{entry.id}-1"
    [held] = attempts.open()
    assert held == attempts.newest(admitted) == Attempt(admitted, Resources(2, 1), 2, False, None)
    assert held.holding == Holding(entry.id, "alice", "vision", Gang(Resources(1, 0.5), 2))

    clock.advance(minutes=1)
    began = attempts.begin(entry.id, 1)
    assert (began.began, began.trials, began.entry) == (True, 2, queue.entry(entry.id))
    assert (began.entry.state, began.entry.started_at) == (S.RUNNING, clock.at)

    attempts.report(entry.id, 1, "failed", "one \0 of 2 trials")
    said = queue.entry(entry.id)
    assert (said.state, said.message) == (S.RUNNING, "one \\0 of 2 trials")
    assert len(attempts.open()) == 1  # its process may still be there
    ended = attempts.settle(said, fence, "leader")
    assert ended is not None
    assert (ended.state, ended.message, ended.ended_at) == (S.FAILED, said.message, clock.at)
    assert attempts.open() == []
    events = log.after(Cursor(), experiment_id=entry.id)
    assert [(event.kind, event.actor) for event in events] == [
        ("submitted", "alice"),
        ("admitted", "leader"),
        ("started", "driver"),
        ("reported", "driver"),
        ("ended", "leader"),
    ]
    assert events[1].data["granted"] == "1 GPU and 2 cores"
    assert events[4].data["outcome"] == "failed"


def test_whoever_saw_an_older_version_changes_nothing(
    queue: Queue, attempts: Attempts, submit: Submit, fence: int, store: Store
) -> None:
    entry, _ = submit()
    queue.set_priority(entry.id, 3, "alice")
    before = everything(store)
    assert attempts.admit(entry, Grant(entry.id, 1, entry.gang.total), fence, "leader") is None
    assert everything(store) == before
    seen = queue.entry(entry.id)
    admitted = attempts.admit(seen, Grant(entry.id, 1, entry.gang.total), fence, "leader")
    assert admitted is not None
    attempts.begin(entry.id, 1)
    before = everything(store)
    assert attempts.settle(admitted, fence, "leader") is None
    assert everything(store) == before
    running = queue.entry(entry.id)
    assert attempts.settle(running, fence, "leader") is not None
    before = everything(store)
    assert attempts.settle(running, fence, "leader") is None
    assert everything(store) == before


def test_a_dispatcher_that_no_longer_leads_can_write_nothing(
    queue: Queue, attempts: Attempts, submit: Submit, bring: Bring, store: Store, clock: Any
) -> None:
    waiting, running = submit("w")[0], bring(S.RUNNING, "r")
    clock.advance(days=10**5)
    assert Leadership(store.database, "another").hold({}) == 2
    before = everything(store)
    for old in (0, 1, 3):
        with pytest.raises(FencedError):
            attempts.admit(waiting, Grant(waiting.id, 1, waiting.gang.total), old, "leader")
        with pytest.raises(FencedError):
            attempts.settle(running, old, "leader")
    assert everything(store) == before
    assert (
        attempts.admit(waiting, Grant(waiting.id, 1, waiting.gang.total), 2, "another") is not None
    )
    assert attempts.settle(running, 2, "another") is not None


# What an end leads to

VERDICTS = {
    ("succeeded", S.RUNNING): S.SUCCEEDED,
    ("succeeded", S.PAUSING): S.SUCCEEDED,
    ("succeeded", S.CANCELLING): S.SUCCEEDED,
    ("failed", S.RUNNING): S.FAILED,
    ("failed", S.PAUSING): S.FAILED,
    ("failed", S.CANCELLING): S.CANCELLED,
    ("interrupted", S.RUNNING): S.QUEUED,
    ("interrupted", S.PAUSING): S.PAUSED,
    ("interrupted", S.CANCELLING): S.CANCELLED,
    (None, S.STARTING): S.QUEUED,
    (None, S.RUNNING): S.QUEUED,
    (None, S.PAUSING): S.PAUSED,
    (None, S.CANCELLING): S.CANCELLED,
}


def test_what_follows_from_every_end(bring: Bring, settle: Any, log: EventLog, clock: Any) -> None:
    for (outcome, state), goal in VERDICTS.items():
        entry = bring(state, f"{state.lower()}-{str(outcome).lower()}")
        clock.advance(minutes=1)
        ended = settle(entry, outcome, "why" if outcome == "failed" else None)
        assert ended.state is goal
        assert ended.queued_at == entry.queued_at
        assert ended.losses == (1 if outcome is None and goal is S.QUEUED else 0)
        assert ended.message == ("why" if goal is S.FAILED else None)
        assert ended.ended_at == (clock.at if goal.is_terminal else None)
        word = log.after(Cursor(), experiment_id=entry.id)[-1].data["outcome"]
        quiet = "stopped" if state in (S.PAUSING, S.CANCELLING) else "lost"
        assert word == (outcome or quiet)


def test_a_driver_that_is_lost_again_and_again_without_progress_fails(
    queue: Queue, submit: Submit, admit: Any, settle: Any
) -> None:
    assert queue.policy.max_losses == 5
    entry, _ = submit()
    for loss in range(1, 6):
        admit(entry, begin=loss % 2 == 0)
        entry = settle(entry)
        assert (entry.state, entry.losses, entry.attempt) == (S.QUEUED, loss, loss)
    admit(entry)
    entry = settle(entry)
    assert (entry.state, entry.losses) == (S.FAILED, 6)
    assert entry.message == (
        "its driver was lost 6 times in a row without a finished trial; look at its logs, then "
        "retry it"
    )
    again = queue.act(entry.id, Action.RETRY, "alice")
    assert (again.state, again.losses, again.attempt, again.message) == (S.QUEUED, 0, 6, None)


def test_progress_forgives_losses(submit: Submit, admit: Any, settle: Any, finish: Any) -> None:
    entry, _ = submit("one", 0.1, 0.2, 0.3)
    for losses in (1, 2, 3):
        admit(entry)
        entry = settle(entry)
        assert entry.losses == losses
    for losses in (1, 2):
        admit(entry)
        if losses == 1:
            finish(entry)
        entry = settle(entry)
        # Lost after a trial has succeeded: it counts from one again.
        assert entry.losses == losses


def test_a_pause_forgives_losses(queue: Queue, submit: Submit, admit: Any, settle: Any) -> None:
    entry, _ = submit()
    admit(entry)
    assert settle(entry).losses == 1
    admit(queue.entry(entry.id))
    queue.act(entry.id, Action.PAUSE, "alice")
    assert settle(entry).losses == 0


# Drivers


def test_a_driver_begins_only_where_it_is_wanted(
    attempts: Attempts, bring: Bring, queue: Queue, store: Store
) -> None:
    for state in S:
        entry = bring(state, state.lower())
        if state in (S.STARTING, S.RUNNING):
            assert attempts.begin(entry.id, 1).entry.state is S.RUNNING
            continue
        before = everything(store)
        with pytest.raises(SupersededError, match="attempt 1 is not wanted, got") as told:
            attempts.begin(entry.id, 1)
        assert str(told.value).endswith("nothing was done")
        assert everything(store) == before


def test_a_driver_of_an_older_attempt_or_of_one_to_come_does_not_begin(
    attempts: Attempts, queue: Queue, submit: Submit, admit: Any, settle: Any
) -> None:
    entry, _ = submit()
    admit(entry, begin=False)
    admit(settle(entry), begin=False)
    for number in (0, 1, 3):
        with pytest.raises(SupersededError):
            attempts.begin(entry.id, number)
    assert attempts.begin(entry.id, 2).began
    with pytest.raises(NoEntryError):
        attempts.begin("0" * 32, 1)


def test_beginning_twice_is_beginning_once(
    attempts: Attempts, submit: Submit, admit: Any, store: Store, clock: Any
) -> None:
    # The answer to the first may have been lost with the connection.
    entry, _ = submit()
    first = admit(entry)
    before = everything(store)
    clock.advance(minutes=1)
    assert attempts.begin(entry.id, 1) == first
    assert everything(store) == before


def test_a_word_counts_once_and_not_after_the_end(
    attempts: Attempts, submit: Submit, admit: Any, settle: Any, store: Store
) -> None:
    entry, _ = submit()
    admit(entry)
    attempts.report(entry.id, 1, "failed", "why")
    before = everything(store)
    attempts.report(entry.id, 1, "failed", "why")
    assert everything(store) == before
    settle(entry)
    before = everything(store)
    for number in (0, 1, 2):
        attempts.report(entry.id, number, "succeeded", None)
    assert everything(store) == before


def test_a_word_of_a_lost_attempt_says_nothing_of_the_next(
    attempts: Attempts, queue: Queue, submit: Submit, admit: Any, settle: Any
) -> None:
    entry, _ = submit()
    admit(entry)
    admit(settle(entry))
    attempts.report(entry.id, 1, "failed", "why")
    assert queue.entry(entry.id).message is None
    assert attempts.open()[0].outcome is None
    assert settle(entry, "succeeded").state is S.SUCCEEDED


def test_the_first_start_is_remembered(
    attempts: Attempts, queue: Queue, submit: Submit, admit: Any, settle: Any, clock: Any
) -> None:
    entry, _ = submit()
    admit(entry)
    first = clock.at
    clock.advance(hours=1)
    admit(settle(entry))
    assert queue.entry(entry.id).started_at == first


def test_a_driver_may_tell_of_its_trials(attempts: Attempts, submit: Submit, log: EventLog) -> None:
    entry, _ = submit()
    attempts.tell(entry.id, "trial", {"epoch": 3})
    event = log.after(Cursor(), experiment_id=entry.id)[-1]
    assert (event.kind, event.actor, event.data) == ("trial", "driver", {"epoch": 3})


# Usage


def test_usage_is_what_was_granted_times_how_long(
    attempts: Attempts, submit: Submit, admit: Any, settle: Any, clock: Any, store: Store
) -> None:
    assert attempts.usage().gpu_hours == {}
    a = submit("a", user="alice", project="x")[0]
    b = submit("b", user="bob", project="x")[0]
    c = submit("c", user="alice", project="y")[0]
    admit(a, Resources(8, 2))
    clock.advance(hours=1)
    admit(b, Resources(4, 0.5), begin=False)
    clock.advance(hours=2)
    settle(a)  # 3 h of 2 GPUs and 8 cores
    admit(c, Resources(16))
    clock.advance(hours=1)
    usage = attempts.usage()
    # b: 3 h of 0.5 GPUs and 4 cores, though its driver has not begun; c: 1 h of 16 cores.
    assert usage.gpu_hours == pytest.approx({"alice": 6.0, "bob": 1.5})
    assert usage.project_gpu_hours == pytest.approx({"x": 7.5, "y": 0.0})
    assert usage.cpu_hours == pytest.approx({"alice": 24.0 + 16.0, "bob": 12.0})
    # Five hours later, of the last six: of a's three hours, the last one is left.
    clock.advance(hours=4)
    window = Attempts(store.database, Policy(window_days=6 / 24)).usage()
    assert window.gpu_hours == pytest.approx({"alice": 2.0 * 1, "bob": 0.5 * 6})
    assert window.cpu_hours == pytest.approx({"alice": 8.0 + 5 * 16, "bob": 24.0})
    settle(b)
    settle(c)
    clock.advance(hours=7)
    assert Attempts(store.database, Policy(window_days=6 / 24)).usage().gpu_hours == {}


def test_an_attempt_that_ended_before_it_began_by_a_clock_set_back_used_nothing(
    attempts: Attempts, submit: Submit, admit: Any, settle: Any, clock: Any
) -> None:
    admit(submit()[0], Resources(1, 1))
    clock.advance(hours=-1)
    settle(submit()[0])
    assert attempts.usage().gpu_hours == {"alice": 0.0}


def test_usage_of_a_retried_experiment_is_that_of_all_its_attempts(
    attempts: Attempts, submit: Submit, admit: Any, settle: Any, clock: Any
) -> None:
    entry = submit(project="old")[0]
    admit(entry, Resources(1, 1))
    clock.advance(hours=1)
    settle(entry, "failed", "why")
    entry = submit(project="new")[0]
    admit(entry, Resources(1, 4))
    clock.advance(hours=1)
    assert attempts.usage().gpu_hours == pytest.approx({"alice": 5.0})
    assert attempts.usage().project_gpu_hours == pytest.approx({"old": 1.0, "new": 4.0})
