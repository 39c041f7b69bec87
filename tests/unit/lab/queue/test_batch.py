"""Submissions put together: each outcome is what it would have been alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import StoreUnreachableError, UserError
from focus_lab.lab.database import Database
from focus_lab.lab.queue import batch
from focus_lab.lab.queue.batch import put_all
from focus_lab.lab.queue.entry import Filters
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import KeyReusedError, NameTakenError, Queue, QuotaError
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.queue.submission import Submission, Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.plan import plan

pytestmark = pytest.mark.usefixtures("check_audit")
Make = Callable[..., Submission]


@pytest.fixture
def make(make_spec: Callable[..., Any], tmp_path: Path) -> Make:
    def call(name: str, *ratios: float, user: str = "alice", **details: Any) -> Submission:
        spec = make_spec(name, *ratios)
        return Submission(spec, plan(spec), tmp_path / name, Submitter(user), **details)

    return call


def told(outcome: Any) -> Any:
    """Of an outcome, what does not depend on ids and clocks."""
    if isinstance(outcome, Exception):
        return type(outcome), str(outcome)
    entry, created = outcome
    return entry.name, entry.user, entry.state, entry.priority, entry.trials, created


def history(queue: Queue) -> list[Any]:
    names = {entry.id: entry.name for entry in queue.page(Filters(), limit=1000).entries}
    events = EventLog(queue.store.database).after(Cursor())
    return [(names.get(one.experiment_id or ""), one.kind, one.actor, one.data) for one in events]


@pytest.mark.parametrize("seed", range(6))
def test_together_comes_out_as_one_by_one(
    store: Store, make: Make, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    policy = Policy.model_validate({"quotas": {"default_user": {"queued": 5}}})
    together = Queue(store, policy)
    alone = Queue(Store(f"sqlite:///{tmp_path / 'alone.db'}"), policy)
    for _ in range(4):
        handed_in = [
            make(
                f"e{chance.randrange(12)}",
                *chance.choice([(0.2, 0.5), (0.3,)]),
                user=chance.choice(["alice", "bob"]),
                priority=chance.choice([0, 5]),
                key=chance.choice([None, None, "k1", "k2"]),
            )
            for _ in range(chance.randrange(1, 9))
        ]
        found = [told(one) for one in put_all(together, handed_in)]
        assert sorted(map(str, found)) == sorted(
            str(told(put_all(alone, [one])[0])) for one in handed_in
        )
    assert together.counts() == alone.counts()
    assert sorted(map(str, history(together))) == sorted(map(str, history(alone)))
    for entry in together.page(Filters(), limit=100).entries:
        twin = alone.entry(entry.name)
        for mine, theirs in zip(
            together.store.trials(entry.id), alone.store.trials(twin.id), strict=True
        ):
            assert (mine.fingerprint, mine.spec, mine.position, mine.state) == (
                theirs.fingerprint, theirs.spec, theirs.position, theirs.state
            )  # fmt: skip
    alone.store.close()


def test_what_is_new_takes_one_transaction(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    session = Database.session
    monkeypatch.setattr(
        Database, "session", lambda self: opened.append(1) or session(self)  # type: ignore[func-returns-value]
    )  # fmt: skip
    outcomes = put_all(queue, [make(f"e{number}") for number in range(20)])
    assert len(opened) == 1
    assert [told(one)[0] for one in outcomes] == [f"e{number}" for number in range(20)]
    kinds = [event.kind for event in EventLog(queue.store.database).after(Cursor())]
    assert kinds == ["submitted"] * 20


def test_each_refusal_is_its_own(queue: Queue, make: Make) -> None:
    put_all(queue, [make("taken", user="bob"), make("known", key="k")])
    found = put_all(queue, [make("taken"), make("other", key="k"), make("new"), make("new", 0.9)])
    assert isinstance(found[0], NameTakenError)
    assert isinstance(found[1], KeyReusedError)
    assert told(found[2])[-1] is True
    assert isinstance(found[3], UserError)
    assert "is queued with another spec" in str(found[3])


def test_a_quota_holds_for_those_who_come_together(store: Store, make: Make) -> None:
    policy = Policy.model_validate({"quotas": {"default_user": {"queued": 3}}})
    found = put_all(Queue(store, policy), [make(f"e{number}") for number in range(5)])
    assert [isinstance(one, QuotaError) for one in found] == [False] * 3 + [True] * 2


def test_whoever_was_faster_spoils_nothing_for_the_others(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(make("two", user="bob"))
    # As if bob had come after the names were looked up.
    monkeypatch.setattr(batch, "_taken", lambda session, submissions: set())
    found = put_all(queue, [make("one"), make("two"), make("three")])
    assert [told(one)[0] for one in found] == ["one", NameTakenError, "three"]


def test_one_that_cannot_be_written_spoils_nothing_for_the_others(queue: Queue, make: Make) -> None:
    spec = make("two").spec
    # No database has a column for it; no spec that was validated has it either.
    seeds = spec.sweep.model_copy(update={"seeds": (2**63,)})
    broken = spec.model_copy(update={"sweep": seeds})
    bad = replace(make("two"), spec=broken, plan=plan(broken))
    found = put_all(queue, [make("one"), bad, make("three")])
    assert [told(found[0])[0], told(found[2])[0]] == ["one", "three"]
    assert isinstance(found[1], Exception)
    assert queue.counts() == {QueueState.QUEUED: 2}


def test_a_store_that_is_away_is_told_to_each(
    queue: Queue, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Database) -> Any:
        raise StoreUnreachableError

    handed_in = [make("one"), make("two")]
    monkeypatch.setattr(Database, "session", away)
    assert [type(one) for one in put_all(queue, handed_in)] == [StoreUnreachableError] * 2
    monkeypatch.undo()
    assert queue.counts() == {}
