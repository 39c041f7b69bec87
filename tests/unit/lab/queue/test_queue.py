"""The queue: what is submitted once, what may be done with it, and what all of it leaves behind."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.errors import UserError
from focus_lab.lab.queue.admission import Grant
from focus_lab.lab.queue.attempts import Attempts, SupersededError
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.changes import NoEntryError
from focus_lab.lab.queue.entry import Entry, Filters, read_cursor
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import (
    ActiveError,
    KeyReusedError,
    NameTakenError,
    NotAllowedError,
    Queue,
    QuotaError,
)
from focus_lab.lab.queue.states import ACTIONS, Action, QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import ExperimentRow, IdempotencyRow
from focus_lab.specs.plan import plan

pytestmark = pytest.mark.usefixtures("check_audit")
on_postgresql = pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
Submit = Callable[..., tuple[Entry, bool]]
Bring = Callable[..., Entry]
S = QueueState


def rows(store: Store, table: Any) -> int:
    with store.database.reading() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls of several threads at the same moment return, or raise."""
    ready = threading.Barrier(len(calls))

    def call(one: Callable[[], Any]) -> Any:
        ready.wait(30)
        try:
            return one()
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


# Submitting


def test_a_submitted_experiment_is_queued_with_its_trials_and_an_event(
    queue: Queue, submit: Submit, log: EventLog, store: Store, clock: Any, tmp_path: Path
) -> None:
    entry, is_new = submit(project="vision", priority=3, compute={"cpus_per_worker": 2.0})
    assert is_new
    assert queue.entry("one") == queue.entry(entry.id) == entry
    assert (entry.state, entry.version, entry.attempt, entry.losses) == (S.QUEUED, 0, 0, 0)
    assert (entry.user, entry.project, entry.priority) == ("alice", "vision", 3)
    assert (entry.gang, entry.trials) == (Gang(Resources(2)), 2)
    assert entry.submitted_at == entry.queued_at == clock.at
    assert store.experiment("one").folder == tmp_path / "one"
    assert [trial.state for trial in store.trials(entry.id)] == [TrialState.PENDING] * 2
    [event] = log.after(Cursor())
    assert (event.kind, event.actor, event.experiment_id) == ("submitted", "alice", entry.id)
    assert event.data == {"name": "one", "state": "QUEUED", "version": 0, "priority": 3}


NEEDS: list[tuple[dict[str, Any], Gang, bool]] = [
    ({"device": "cpu"}, Gang(Resources(1)), False),
    ({"device": "cpu", "workers": 2, "cpus_per_worker": 3.0}, Gang(Resources(3), 2), False),
    ({"device": "cuda", "workers": 2}, Gang(Resources(1, 1), 2), False),
    ({"device": "cuda", "gpus_per_worker": 0.25}, Gang(Resources(1, 0.25)), False),
    ({"device": "auto", "workers": 2}, Gang(Resources(1), 2), True),
    ({"device": "auto", "gpus_per_worker": 0.5}, Gang(Resources(1, 0.5)), False),
]


def test_what_a_trial_needs_is_what_its_executor_will_take(submit: Submit) -> None:
    for number, (compute, gang, auto) in enumerate(NEEDS):
        entry, _ = submit(f"e{number}", compute=compute)
        assert (entry.gang, entry.waiting.auto_gpus) == (gang, auto)


def test_the_same_experiment_twice_is_one_in_any_state_but_failed_and_cancelled(
    queue: Queue, submit: Submit, bring: Bring, store: Store
) -> None:
    for state in S:
        entry = bring(state, state.lower())
        again, is_new = submit(state.lower())
        assert again.id == entry.id
        assert is_new is (state in (S.FAILED, S.CANCELLED))
        assert again.state is (S.QUEUED if is_new else state)
        assert again == queue.entry(entry.id)
    assert rows(store, ExperimentRow) == len(S)


def test_another_spec_is_refused_until_the_experiment_has_ended(
    queue: Queue, submit: Submit, bring: Bring, store: Store
) -> None:
    for state in S:
        entry = bring(state, state.lower())
        if state.is_terminal:
            assert submit(state.lower(), 0.9) == (queue.entry(entry.id), True)
            continue
        with pytest.raises(ActiveError, match=f"{state.lower()}: is {state.lower()} with another"):
            submit(state.lower(), 0.9)
        assert queue.entry(entry.id) == entry
        assert store.trials(entry.id)[0].cell == "keep_ratio=0.2"


def test_the_name_of_somebody_else_is_taken_for_good(
    queue: Queue, submit: Submit, bring: Bring
) -> None:
    for state in (S.QUEUED, S.RUNNING, S.SUCCEEDED, S.CANCELLED):
        entry = bring(state, state.lower())
        for ratios in ((), (0.9,)):
            with pytest.raises(NameTakenError, match="is taken by an experiment of alice, got '"):
                submit(state.lower(), *ratios, user="bob")
        assert queue.entry(entry.id) == entry


def test_an_ended_experiment_goes_on_with_what_has_succeeded(
    queue: Queue, submit: Submit, admit: Any, settle: Any, finish: Any, store: Store, clock: Any
) -> None:
    first, _ = submit("one", 0.2, 0.3, 0.4, priority=1)
    admit(first)
    finish(first)
    done, broken, _ = store.trials(first.id)
    store.move(store.move(broken, TrialState.RUNNING), TrialState.FAILED, message="why")
    ended = settle(first, "failed", "1 of 3 trials has no result")
    assert (ended.state, ended.message) == (S.FAILED, "1 of 3 trials has no result")
    clock.advance(hours=2)

    again, is_new = submit("one", 0.2, 0.3, 0.7, 0.8, project="other", priority=2)
    assert is_new
    assert again.id == first.id
    assert (again.state, again.attempt, again.priority, again.trials) == (S.QUEUED, 1, 2, 4)
    assert (again.project, again.message, again.ended_at) == ("other", None, None)
    assert (again.submitted_at, again.queued_at) == (first.submitted_at, clock.at)
    trials = store.trials(first.id)
    assert [trial.id for trial in trials[:2]] == [done.id, broken.id]
    assert [trial.state for trial in trials] == [TrialState.SUCCEEDED] + [TrialState.PENDING] * 3
    assert admit(again).entry.job_id == f"{first.id}-2"


def test_an_experiment_of_a_command_line_is_adopted_once_nobody_carries_it_out(
    queue: Queue, submit: Submit, store: Store, make_spec: Any, tmp_path: Path, clock: Any
) -> None:
    spec = make_spec("one")
    made = store.record(spec, plan(spec), tmp_path / "one")
    trials = store.trials(made.id)
    store.move(store.move(trials[0], TrialState.RUNNING), TrialState.SUCCEEDED)
    store.take_lease(made.id, "host:1:2:3", 60, set())
    with pytest.raises(ActiveError, match="is carried out from a command line, got host:1:2:3"):
        submit("one")
    with pytest.raises(NoEntryError):
        queue.entry("one")
    clock.advance(seconds=61)
    with pytest.raises(NameTakenError, match="was begun from a command line, got 'one'"):
        submit("one", 0.1)
    assert store.experiment("one").spec == made.spec
    entry, is_new = submit("one")
    assert is_new
    assert entry.id == made.id
    states = [trial.state for trial in store.trials(made.id)]
    assert states == [TrialState.SUCCEEDED, TrialState.PENDING]


# Keys


def test_a_request_that_is_sent_twice_with_its_key_is_carried_out_once(
    queue: Queue, submit: Submit, log: EventLog
) -> None:
    entry, is_new = submit(key="k")
    assert is_new
    queue.act(entry.id, Action.CANCEL, "alice")
    # Without the key this would queue it again; the request was answered already.
    again, is_new = submit(key="k")
    assert not is_new
    assert again == queue.entry(entry.id)
    assert again.state is S.CANCELLED
    assert len(log.after(Cursor())) == 2


@pytest.mark.parametrize(
    ("spec", "details"),
    [
        (("two",), {}),
        (("one", 0.9), {}),
        (("one",), {"priority": 1}),
        (("one",), {"project": "other"}),
    ],
)
def test_a_key_belongs_to_one_request_of_one_user(
    queue: Queue, submit: Submit, spec: Any, details: dict[str, Any]
) -> None:
    submit(key="k")
    with pytest.raises(KeyReusedError, match="was used for another request, got 'k'"):
        submit(*spec, key="k", **details)
    assert sum(queue.counts().values()) == 1
    assert submit("bobs", user="bob", key="k")[1]


def test_a_key_is_forgotten_after_a_day(
    queue: Queue, submit: Submit, store: Store, clock: Any
) -> None:
    submit("one", key="k")
    submit("bobs", user="bob", key="k")
    clock.advance(hours=23, minutes=59)
    with pytest.raises(KeyReusedError):
        submit("two", key="k")
    clock.advance(minutes=2)
    assert submit("two", key="k")[1]
    # What is forgotten takes no room: alice's old key is gone, bob's goes when he comes again.
    assert rows(store, IdempotencyRow) == 2


def test_an_answer_that_changes_nothing_is_remembered_with_its_key(
    queue: Queue, submit: Submit
) -> None:
    submit("one")
    assert submit("one", key="k")[1] is False
    with pytest.raises(KeyReusedError):
        submit("two", key="k")


# What several do at the same moment


def test_of_many_who_submit_a_new_name_at_once_one_gets_it(
    submit: Submit, store: Store, log: EventLog
) -> None:
    found = together(*(lambda user=user: submit(user=user) for user in ["alice", "bob"] * 3))
    refused = [one for one in found if isinstance(one, NameTakenError)]
    kept = [one for one in found if not isinstance(one, UserError)]
    assert len(refused) == len(kept) == 3
    assert sum(is_new for _, is_new in kept) == 1
    assert len({entry.id for entry, _ in kept}) == 1
    assert rows(store, ExperimentRow) == 1
    assert len(log.after(Cursor())) == 1


def test_of_many_requests_with_one_key_at_once_one_is_carried_out(
    submit: Submit, store: Store
) -> None:
    names = ["one", "two", "one", "two"]
    found = together(*(lambda name=name: submit(name, key="k") for name in names))
    assert sum(isinstance(one, KeyReusedError) for one in found) == 2
    kept = [one for one in found if not isinstance(one, UserError)]
    assert sorted(is_new for _, is_new in kept) == [False, True]
    assert rows(store, ExperimentRow) == 1


@pytest.mark.parametrize("whose", ["default_user", "default_project"])
def test_no_quota_is_passed_by_many_at_once(submit: Submit, store: Store, whose: str) -> None:
    limited = Queue(store, Policy.model_validate({"quotas": {whose: {"queued": 3}}}))
    found = together(*(lambda n=n: submit(f"e{n}", to=limited) for n in range(8)))
    assert sum(isinstance(one, QuotaError) for one in found) == 5
    assert limited.counts() == {"QUEUED": 3}
    assert rows(store, ExperimentRow) == 3


@on_postgresql
def test_what_was_allowed_is_not_done_to_what_has_become_of_it_meanwhile(
    submit: Submit, bring: Bring, admit: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between finding it ended and queueing it again somebody retries it, and its driver begins.
    no_limits = Queue(store, Policy.model_validate({"quotas": {"default_user": {}}}))
    entry = bring(S.FAILED)
    record_in, came_first = store.record_in, []

    def late(*arguments: Any) -> Any:
        if not came_first:
            came_first.append(admit(no_limits.act(entry.id, Action.RETRY, "carol")))
        return record_in(*arguments)

    monkeypatch.setattr(store, "record_in", late)
    with pytest.raises(ActiveError, match="is running with another spec"):
        submit("one", 0.9, to=no_limits)
    assert no_limits.entry("one") == came_first[0].entry


def test_whoever_cancels_and_whoever_admits_do_not_both_get_their_way(
    queue: Queue, attempts: Attempts, submit: Submit, fence: int
) -> None:
    for number in range(5):
        entry, _ = submit(f"e{number}")
        grant = Grant(entry.id, 1, entry.gang.total)
        cancelled, admitted = together(
            lambda entry=entry: queue.act(entry.id, Action.CANCEL, "alice"),
            lambda entry=entry, grant=grant: attempts.admit(entry, grant, fence, "leader"),
        )
        now = queue.entry(entry.id)
        if admitted is None:
            assert now == cancelled
            assert now.state is S.CANCELLED
        else:
            # Cancelled afterwards: what was admitted is on its way to its end.
            assert now.state is S.CANCELLING
    assert len(attempts.open()) == queue.counts().get("CANCELLING", 0)


# Acting


@pytest.mark.parametrize("action", Action)
def test_every_action_in_every_state(
    queue: Queue, bring: Bring, log: EventLog, store: Store, action: Action
) -> None:
    assert set(ACTIONS) == set(Action)
    for state in S:
        entry = bring(state, state.lower())
        before = log.newest()
        goal = ACTIONS[action].get(state)
        if goal is None:
            with pytest.raises(NotAllowedError, match=f"cannot {action} it, got {state.lower()}"):
                queue.act(entry.id, action, "carol")
        else:
            queue.act(entry.name, action, "carol")
        now = queue.entry(entry.id)
        assert now.state is (goal or state)
        events = log.after(before)
        if goal in (None, state):
            assert now == entry
            assert events == []
            continue
        [event] = events
        assert (event.kind, event.actor, event.experiment_id) == (action, "carol", entry.id)
        assert (now.ended_at is not None) is now.state.is_terminal


def test_the_table_of_actions_is_this_one() -> None:
    """By hand: what a person may do, and what comes of it."""
    said = {
        Action.CANCEL: "QUEUED>CANCELLED PAUSED>CANCELLED STARTING>CANCELLING RUNNING>CANCELLING "
        "PAUSING>CANCELLING CANCELLING>CANCELLING CANCELLED>CANCELLED",
        Action.PAUSE: "QUEUED>PAUSED STARTING>PAUSING RUNNING>PAUSING PAUSING>PAUSING "
        "PAUSED>PAUSED",
        Action.RESUME: "PAUSED>QUEUED QUEUED>QUEUED STARTING>STARTING RUNNING>RUNNING",
        Action.RETRY: "FAILED>QUEUED CANCELLED>QUEUED QUEUED>QUEUED STARTING>STARTING "
        "RUNNING>RUNNING",
    }
    for action, text in said.items():
        table = dict(pair.split(">") for pair in text.split())
        assert {a.value: b.value for a, b in ACTIONS[action].items()} == table


def test_a_retry_gives_failed_and_cancelled_trials_another_chance_and_keeps_the_rest(
    queue: Queue, submit: Submit, admit: Any, settle: Any, finish: Any, store: Store, clock: Any
) -> None:
    entry, _ = submit("one", 0.1, 0.2, 0.3)
    admit(entry)
    finish(entry)
    _, failed, cancelled = store.trials(entry.id)
    store.move(store.move(failed, TrialState.RUNNING), TrialState.FAILED, message="why")
    store.move(cancelled, TrialState.CANCELLED)
    settle(entry, "failed", "2 of 3")
    clock.advance(hours=1)
    again = queue.act(entry.id, Action.RETRY, "alice")
    assert (again.queued_at, again.message, again.ended_at) == (clock.at, None, None)
    trials = store.trials(entry.id)
    assert [trial.state for trial in trials] == [TrialState.SUCCEEDED] + [TrialState.PENDING] * 2
    assert [trial.message for trial in trials] == [None] * 3


def test_quotas_count_what_waits_or_runs_and_keep_the_rest_from_coming_back(
    submit: Submit, store: Store, bring: Bring
) -> None:
    limited = Queue(store, Policy.model_validate({"quotas": {"default_user": {"queued": 2}}}))
    running, waiting = bring(S.RUNNING, "r", to=limited), submit("w", to=limited)[0]
    with pytest.raises(QuotaError, match="user alice has 2 experiments that wait or run; 2 are"):
        submit("third", to=limited)
    limited.act(waiting.id, Action.PAUSE, "alice")
    assert submit("third", to=limited)[1]
    with pytest.raises(QuotaError):
        limited.act(waiting.id, Action.RESUME, "alice")
    limited.act("third", Action.CANCEL, "alice")
    assert limited.act(waiting.id, Action.RESUME, "alice").state is S.QUEUED
    with pytest.raises(QuotaError):
        limited.act("third", Action.RETRY, "alice")
    # Ending something is always allowed.
    assert limited.act(running.id, Action.CANCEL, "alice").state is S.CANCELLING


def test_priority_may_be_changed(queue: Queue, submit: Submit, log: EventLog) -> None:
    entry, _ = submit()
    assert queue.set_priority("one", 7, "carol").priority == 7
    assert queue.set_priority("one", 7, "carol").version == 1
    assert [event.kind for event in log.after(Cursor())] == ["submitted", "priority"]
    assert queue.entry(entry.id).waiting.priority == 7


@pytest.mark.parametrize("priority", [1001, -1001, 2**40])
def test_nobody_gets_so_far_ahead_that_others_wait_without_end(
    queue: Queue, submit: Submit, priority: int
) -> None:
    entry, _ = submit(priority=1000)
    for ask in (
        lambda: submit("two", priority=priority),
        lambda: queue.set_priority("one", priority, "alice"),
    ):
        with pytest.raises(UserError, match=f"priority: is too far from 0, got {priority}"):
            ask()
    assert queue.page(Filters()).entries == (entry,)
    assert queue.set_priority("one", -1000, "alice").priority == -1000


@pytest.mark.parametrize("name", ["nothing", "", "\0", "\ud800", "x" * 5000])
def test_what_was_never_submitted_is_said_to_be_unknown(queue: Queue, name: str) -> None:
    for ask in (
        queue.entry,
        lambda name: queue.act(name, Action.CANCEL, "alice"),
        lambda name: queue.set_priority(name, 1, "alice"),
    ):
        with pytest.raises(NoEntryError, match="no such name or id was submitted, got "):
            ask(name)


def test_an_experiment_that_has_the_id_of_another_for_its_name_hides_nothing(
    queue: Queue, submit: Submit
) -> None:
    first, _ = submit("one")
    thief, _ = submit(first.id, user="mallory")
    assert queue.entry(first.id) == first
    assert queue.act(first.id, Action.PAUSE, "alice").name == "one"
    assert queue.entry(thief.id) == thief


# Asking


def test_pages_have_everything_once_while_others_submit_and_come_back(
    queue: Queue, submit: Submit, clock: Any
) -> None:
    names = [f"e{number}" for number in range(11)]
    for number, name in enumerate(names):
        clock.advance(seconds=number % 3)  # some at the same moment
        submit(name)
    queue.act("e1", Action.CANCEL, "alice")
    seen: list[str] = []
    page = queue.page(Filters(), limit=3)
    for number in itertools.count():
        seen += [entry.name for entry in page.entries]
        if page.next_cursor is None:
            break
        clock.advance(seconds=1)
        submit(f"new{number}")
        if number == 0:
            submit("e1")  # an old one is queued again
        page = queue.page(Filters(), limit=3, cursor=page.next_cursor)
    assert sorted(seen) == sorted(names)
    newest = [entry.submitted_at for entry in queue.page(Filters(), limit=100).entries]
    assert newest == sorted(newest, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_the_last_page_says_so(queue: Queue, submit: Submit, count: int) -> None:
    for number in range(count):
        submit(f"e{number}")
    page = queue.page(Filters(), limit=2)
    assert len(page.entries) == min(2, count)
    assert (page.next_cursor is not None) is (count > 2)


def test_pages_may_be_of_some(queue: Queue, submit: Submit, bring: Bring) -> None:
    submit("a-1")
    submit("a-2", user="bob", project="x")
    bring(S.RUNNING, "b-1", project="x")
    bring(S.FAILED, "b%1")

    def names(**filters: Any) -> set[str]:
        return {entry.name for entry in queue.page(Filters(**filters)).entries}

    assert names() == {"a-1", "a-2", "b-1", "b%1"}
    assert names(states=(S.QUEUED, S.FAILED)) == {"a-1", "a-2", "b%1"}
    assert names(user="bob") == {"a-2"}
    assert names(project="x", states=(S.RUNNING,)) == {"b-1"}
    assert names(name="-1") == {"a-1", "b-1"}
    assert names(name="%") == {"b%1"}
    assert names(name="\0") == names(user="\0") == names(project="\ud800") == set()
    assert queue.counts() == {"QUEUED": 2, "RUNNING": 1, "FAILED": 1}
    assert {entry.name for entry in queue.waiting()} == {"a-1", "a-2"}
    some = [queue.entry(name) for name in ("a-1", "b%1")]
    assert queue.entries([entry.id for entry in some] + ["none"]) == {e.id: e for e in some}


@given(st.text() | st.binary().map(lambda raw: raw.hex()))
def test_a_cursor_of_nobody_is_refused_with_a_sentence(cursor: str) -> None:
    with pytest.raises(UserError, match="cursor: names no page, got"):
        read_cursor(cursor)


# All of it


def test_whatever_is_done_in_whatever_order_leaves_an_audit_without_gaps(
    queue: Queue,
    attempts: Attempts,
    submit: Submit,
    fence: int,
    check_audit: Callable[[], None],
) -> None:
    chance = random.Random(5)
    names = ["a", "b", "c"]
    done = 0

    def step() -> None:
        name = chance.choice(names)
        match chance.randrange(7):
            case 0:
                submit(name, *chance.choice([(), (0.9,)]))
            case 1 | 2:
                queue.act(name, chance.choice(list(Action)), "alice")
            case 3:
                queue.set_priority(name, chance.randrange(3), "alice")
            case 4:
                for entry in queue.waiting():
                    attempts.admit(entry, Grant(entry.id, 1, entry.gang.total), fence, "leader")
            case 5:
                entry = queue.entry(name)
                attempts.begin(entry.id, entry.attempt)
            case 6:
                for one in attempts.open():
                    outcome = chance.choice(["succeeded", "failed", None])
                    if outcome:
                        attempts.report(one.entry.id, one.entry.attempt, outcome, None)
                    attempts.settle(queue.entry(one.entry.id), fence, "leader")

    for _ in range(150):
        try:
            step()
            done += 1
        except (ActiveError, NotAllowedError, SupersededError, NoEntryError):
            continue
        holding = {one.entry.id for one in attempts.open()}
        for entry in queue.page(Filters(), limit=100).entries:
            assert entry.state.is_admitted is (entry.id in holding)
            assert entry.state.is_terminal is (entry.ended_at is not None)
    assert done > 60
    check_audit()
