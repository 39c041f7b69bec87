"""The dispatcher: whatever dies at whatever moment, nothing is lost, doubled or stuck."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.contextvars import get_contextvars
from world import LEASE_S, Fate, World, fated

from focus_lab.errors import StoreUnreachableError
from focus_lab.lab.lease import _machine
from focus_lab.lab.queue.admission import Reason
from focus_lab.lab.queue.attempts import SupersededError
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.dispatcher import Dispatcher, capacity_of, decide_now
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.jobs import JobStatus, JobsUnreachableError, MemoryJob
from focus_lab.lab.queue.leadership import Leadership, drain, leader
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import NotAllowedError, Queue
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import QueueRow

pytestmark = pytest.mark.usefixtures("check_audit")
Submit = Callable[..., tuple[Entry, bool]]
S = QueueState


@pytest.fixture
def fate(monkeypatch: pytest.MonkeyPatch) -> Fate:
    """Comes to whoever uses a store."""
    return fated(monkeypatch)


@pytest.fixture
def world(store: Store, clock: Any, fate: Fate) -> World:
    return World(store, clock, fate)


# Whatever dies


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_whoever_dies_at_whatever_point_everything_is_done_once(
    world: World, submit: Submit, every: int
) -> None:
    """One life of an experiment for every point of it: each time somebody dies there."""
    fate = world.fate
    for number in itertools.count(1, every):
        fate.calm, fate.points, fate.at, fate.deaths = False, 0, number, 0
        name = f"e{number}"
        while not world.may_die(lambda name=name: submit(name, 0.2, to=world.queue, key=name)):  # type: ignore[misc]
            pass  # whoever gets no answer asks again
        for _ in range(60):
            world.tick()
            with fate.asleep():
                entry = world.queue.entry(name)
            if entry.state.is_terminal:
                break
        fate.calm = True
        assert world.all_is_done(entry)
        if not fate.deaths:
            break  # there are no more points
    assert number > 30
    assert len(world.entries()) == len({entry.name for entry in world.entries()})


def chaos(world: World, submit: Submit, count: int, seed: int) -> None:
    fate, jobs, queue = world.fate, world.jobs, world.queue
    fate.chance, fate.share = random.Random(seed), 0.03
    chance = random.Random(seed + 1)
    world.dispatchers.append(world.new_dispatcher())
    cancelled: set[str] = set()
    asked = [f"e{number:03d}" for number in range(count)]
    store_back = cluster_back = 0
    for tick in itertools.count():
        for name in asked[: 1 + count // 40]:
            # Whoever gets no answer asks again, with the same key.
            if world.may_die(lambda name=name: submit(name, to=queue, key=name)):  # type: ignore[misc]
                asked.remove(name)
        with fate.asleep():
            alive = [entry for entry in world.entries() if not entry.state.is_terminal]
        if not asked and not alive:
            break
        assert tick < 2000, f"stuck are {alive}"
        if alive and not fate.store_away:
            for _ in range(1 + count // 50):
                entry, action = chance.choice(alive), chance.choice(list(Action))
                if action is Action.CANCEL and chance.random() < 0.9:
                    continue
                with contextlib.suppress(NotAllowedError):
                    world.may_die(lambda e=entry, a=action: queue.act(e.id, a, "alice"))  # type: ignore[misc]
                if action is Action.CANCEL:
                    cancelled.add(entry.id)
            for entry in alive:
                if entry.state is S.PAUSED and chance.random() < 0.2:
                    with contextlib.suppress(NotAllowedError):
                        world.may_die(lambda e=entry: queue.act(e.id, Action.RESUME, "alice"))  # type: ignore[misc]
        match chance.randrange(60):
            case 0:
                world.restart_cluster(survivors=0.3)
            case 1:
                jobs.reachable, cluster_back = False, tick + chance.randrange(1, 20)
            case 2:
                fate.store_away, store_back = True, tick + chance.randrange(1, 20)
            case 3 | 4 if world.drivers:
                chance.choice(world.drivers).sleeps = chance.randrange(1, 30)
        if tick >= store_back:
            fate.store_away = False
        if tick >= cluster_back:
            jobs.reachable = True
        world.tick()
    world.until_rest(200)
    entries = world.entries()
    assert len(entries) == count
    assert fate.deaths > count / 2
    for entry in entries:
        assert world.all_is_done(entry) or (entry.state is S.CANCELLED and entry.id in cancelled)
    assert sum(entry.state is S.SUCCEEDED for entry in entries) > count / 2
    assert world.carried_out == {}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nothing_is_lost_doubled_or_stuck_while_anything_dies(
    world: World, submit: Submit, seed: int
) -> None:
    chaos(world, submit, 12, seed)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_of_two_hundred_experiments_nothing_is_lost_doubled_or_stuck(
    store: Store, clock: Any, fate: Fate, submit: Submit
) -> None:
    chaos(World(store, clock, fate, cores=24), submit, 200, seed=3)


# By hand


@pytest.fixture
def one(world: World, submit: Submit) -> Entry:
    """An experiment whose job is pending."""
    entry, _ = submit("one", to=world.queue)
    world.dispatchers[0].round()
    return world.queue.entry(entry.id)


def job_of(world: World, entry: Entry) -> MemoryJob:
    return world.jobs.jobs[world.queue.entry(entry.id).job_id]


def begun(world: World, entry: Entry, owner: str = "elsewhere:1:0:0") -> None:
    job_of(world, entry).status = JobStatus.RUNNING
    world.store.take_lease(entry.id, owner, LEASE_S, set())
    world.attempts.begin(entry.id, entry.attempt)


def round_(world: World) -> QueueState:
    world.dispatchers[0].round()
    return world.queue.entry("one").state


def test_a_round_admits_and_submits(world: World, one: Entry) -> None:
    assert one.state is S.STARTING
    assert world.jobs.jobs == {f"{one.id}-1": MemoryJob(one.id, 1)}
    assert round_(world) is S.STARTING
    begun(world, one)
    assert round_(world) is S.RUNNING
    world.attempts.report(one.id, 1, "succeeded", None)
    assert round_(world) is S.RUNNING  # its process has not ended
    job_of(world, one).status = JobStatus.ENDED
    assert round_(world) is S.SUCCEEDED
    assert list(world.jobs.jobs) == [f"{one.id}-1"]


@pytest.mark.parametrize(
    ("action", "end"), [(Action.CANCEL, S.CANCELLED), (Action.PAUSE, S.PAUSED)]
)
def test_a_job_that_is_pending_for_ever_is_no_obstacle(
    world: World, one: Entry, action: Action, end: QueueState
) -> None:
    world.queue.act(one.id, action, "alice")
    assert round_(world) is end
    assert world.attempts.open() == []
    # Should it begin after all, nobody wants it.
    with pytest.raises(SupersededError):
        world.attempts.begin(one.id, 1)
    back = Action.RETRY if action is Action.CANCEL else Action.RESUME
    world.queue.act(one.id, back, "alice")
    assert round_(world) is S.STARTING
    assert list(world.jobs.jobs) == [f"{one.id}-1", f"{one.id}-2"]


@pytest.mark.parametrize(
    ("action", "end"), [(Action.CANCEL, S.CANCELLED), (Action.PAUSE, S.PAUSED)]
)
def test_a_running_job_is_asked_to_stop_until_it_has_ended(
    world: World, one: Entry, action: Action, end: QueueState
) -> None:
    begun(world, one)
    stopping = world.queue.act(one.id, action, "alice").state
    assert round_(world) is stopping
    job = job_of(world, one)
    assert job.stop_asked
    job.stop_asked = False  # whoever asked has died before it was heard
    assert round_(world) is stopping
    assert job.stop_asked
    job.status = JobStatus.ENDED
    # At once: its lease says no more than its end.
    assert round_(world) is end


@pytest.mark.parametrize("action", [Action.CANCEL, Action.PAUSE])
def test_a_job_that_the_cluster_has_forgotten_is_stopped_when_its_driver_is_gone(
    world: World, one: Entry, action: Action, clock: Any
) -> None:
    begun(world, one)
    stopping = world.queue.act(one.id, action, "alice").state
    world.restart_cluster()
    assert round_(world) is stopping
    clock.advance(seconds=LEASE_S + 1)
    assert round_(world) in (S.CANCELLED, S.PAUSED)


def test_what_was_paused_before_its_job_was_submitted_rests(world: World, submit: Submit) -> None:
    entry, _ = submit("one", to=world.queue)
    world.fate.at = 3  # the dispatcher dies after it has admitted, before it submits
    world.fate.points = 0
    assert world.may_die(world.dispatchers[0].round) is None
    world.fate.calm = True
    world.queue.act(entry.id, Action.PAUSE, "alice")
    world.clock.advance(minutes=1)
    world.dispatchers[0] = world.new_dispatcher()
    assert round_(world) is S.PAUSED
    assert world.jobs.jobs == {}


def test_contact_lost_is_not_failure(world: World, one: Entry, clock: Any) -> None:
    begun(world, one)
    running = world.queue.entry("one")
    world.jobs.reachable = False
    for _ in range(3):
        clock.advance(minutes=10)
        with pytest.raises(JobsUnreachableError):
            world.dispatchers[0].round()
        assert world.queue.entry("one") == running
    found = leader(world.store.database)
    assert found is not None
    assert found.told["cluster"] is False
    world.jobs.reachable = True
    assert round_(world) is S.RUNNING
    assert round_(world) is S.RUNNING
    found = leader(world.store.database)
    assert found is not None
    assert {"cluster": True, "machines": [[8.0, 0.0]], "limit": None}.items() <= found.told.items()


def test_a_cluster_that_was_started_anew_gets_the_job_again(world: World, one: Entry) -> None:
    world.restart_cluster()
    assert round_(world) is S.STARTING
    assert world.jobs.jobs == {one.job_id: MemoryJob(one.id, 1)}


def test_a_driver_of_a_forgotten_job_goes_on_as_long_as_its_lease_lives(
    world: World, one: Entry, clock: Any
) -> None:
    begun(world, one)
    world.restart_cluster()
    for _ in range(3):
        clock.advance(seconds=50)
        world.store.take_lease(one.id, "elsewhere:1:0:0", LEASE_S, set())
        assert round_(world) is S.RUNNING
    clock.advance(seconds=LEASE_S + 1)
    round_(world)
    again = world.queue.entry("one")
    assert (again.state, again.attempt, again.losses) == (S.STARTING, 2, 1)


def test_a_job_that_ended_without_a_word_is_settled_once_nobody_carries_it_out(
    world: World, one: Entry, clock: Any
) -> None:
    # Its driver found the lease of another process: a command line, or one that died far away.
    world.store.take_lease(one.id, "elsewhere:1:0:0", LEASE_S, set())
    job_of(world, one).status = JobStatus.ENDED
    for _ in range(10):
        assert round_(world) is S.STARTING
    assert len(world.jobs.jobs) == 1
    clock.advance(seconds=LEASE_S + 1)
    round_(world)
    again = world.queue.entry("one")
    assert (again.attempt, again.losses) == (2, 1)


def test_a_driver_that_died_on_this_machine_is_replaced_at_once(world: World, one: Entry) -> None:
    # No process is that old: the number belongs to another one by now.
    begun(world, one, owner=f"{_machine()}:1:-1:0a1b2c3d")
    job_of(world, one).status = JobStatus.ENDED
    round_(world)
    assert world.queue.entry("one").attempt == 2


def test_a_driver_that_cannot_even_begin_fails_its_experiment_in_the_end(
    world: World, one: Entry
) -> None:
    most, name = 9, "elsewhere:9:0:0"
    queue = Queue(world.store, lambda: Policy(max_losses=most))
    leads = Leadership(world.store.database, name)
    world.dispatchers = [Dispatcher(queue, world.jobs, leads, name)]
    world.clock.advance(minutes=1)  # the former leader's time is over
    for attempt in (1, 2, 3):
        most = 2  # changed while the dispatcher runs
        assert world.queue.entry("one").attempt == attempt
        job_of(world, one).status = JobStatus.ENDED
        state = round_(world)
    ended = world.queue.entry("one")
    assert state is S.FAILED
    assert ended.message is not None
    assert ended.message.startswith("its driver was lost 3 times in a row")


def test_a_draining_queue_starts_nothing_and_looks_after_what_runs(
    world: World, one: Entry, submit: Submit
) -> None:
    drain(world.store.database, "root", on=True)
    submit("two", to=world.queue)
    begun(world, one)
    world.attempts.report(one.id, 1, "succeeded", None)
    job_of(world, one).status = JobStatus.ENDED
    assert round_(world) is S.SUCCEEDED
    assert round_(world) is S.SUCCEEDED
    assert world.queue.entry("two").state is S.QUEUED
    drain(world.store.database, "root", on=False)
    round_(world)
    assert world.queue.entry("two").state is S.STARTING


def test_a_second_dispatcher_does_nothing_until_the_first_is_gone(
    world: World, submit: Submit, clock: Any
) -> None:
    first, second = world.dispatchers[0], world.new_dispatcher()
    first.round()
    submit("one", to=world.queue)
    second.round()
    assert world.queue.entry("one").state is S.QUEUED
    clock.advance(seconds=16)
    second.round()
    assert world.queue.entry("one").state is S.STARTING
    submit("two", to=world.queue)
    first.round()
    assert world.queue.entry("two").state is S.QUEUED


def test_a_dispatcher_that_slept_through_another_ones_rise_changes_nothing(
    world: World, submit: Submit, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit("one", to=world.queue)
    first, second = world.dispatchers[0], world.new_dispatcher()
    capacity = world.jobs.capacity

    def sleepy() -> Any:
        # In the middle of its round: it has taken the lead, and looks at the cluster.
        monkeypatch.setattr(world.jobs, "capacity", capacity)
        clock.advance(seconds=16)
        second.round()
        return capacity()

    monkeypatch.setattr(world.jobs, "capacity", sleepy)
    submit("two", to=world.queue)
    first.round()
    assert world.queue.counts() == {"STARTING": 2}
    assert len(world.jobs.jobs) == 2
    assert {entry.attempt for entry in world.entries()} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("waits", [True, False], ids=["that waits", "that has ended"])
def test_an_entry_that_a_frozen_process_has_locked_keeps_the_others_from_nothing(
    world: World, submit: Submit, waits: bool
) -> None:
    locked, _ = submit("locked", to=world.queue)
    if not waits:
        world.dispatchers[0].round()
        job_of(world, locked).status = JobStatus.ENDED
    submit("other", 0.2, to=world.queue)
    with world.store.database.session() as frozen:
        frozen.execute(
            sa.update(QueueRow).where(QueueRow.experiment_id == locked.id).values(priority=1)
        )
        round_ = threading.Thread(target=world.dispatchers[0].round)
        round_.start()
        round_.join(30)
        assert not round_.is_alive()
        assert world.queue.entry("other").state is S.STARTING
        assert world.queue.entry("locked").attempt == locked.attempt + (not waits)
    world.dispatchers[0].round()
    assert world.queue.entry("locked").state is S.STARTING
    assert world.queue.entry("locked").attempt == locked.attempt + 1 + (not waits)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (JobsUnreachableError("cannot say"), "cannot say"),
        (ZeroDivisionError("odd"), "dispatcher: a step failed, got ZeroDivisionError: odd"),
    ],
)
def test_trouble_with_one_job_keeps_the_others_from_nothing_and_is_said_once(
    world: World, one: Entry, submit: Submit, monkeypatch: pytest.MonkeyPatch,
    trouble: Exception, said: str,
) -> None:  # fmt: skip
    status, submit_job = world.jobs.status, world.jobs.submit
    notes: list[tuple[str, object]] = []
    world.dispatchers[0]._note = lambda text: notes.append(
        (text, get_contextvars().get("experiment"))
    )

    def troubled(job_id: str, *rest: Any, call: Any) -> Any:
        if job_id.startswith(one.id):
            raise trouble
        return call(job_id, *rest)

    monkeypatch.setattr(world.jobs, "status", lambda *a: troubled(*a, call=status))
    monkeypatch.setattr(world.jobs, "submit", lambda *a: troubled(*a, call=submit_job))
    submit("two", to=world.queue)
    world.dispatchers[0].round()
    assert world.queue.entry("two").state is S.STARTING
    world.dispatchers[0].round()
    assert world.queue.entry("one") == one
    assert notes == [(said, one.id)]
    # After a round without trouble it is new again.
    monkeypatch.setattr(world.jobs, "status", status)
    monkeypatch.setattr(world.jobs, "submit", submit_job)
    world.dispatchers[0].round()
    monkeypatch.setattr(world.jobs, "status", lambda *a: troubled(*a, call=status))
    world.dispatchers[0].round()
    assert notes == [(said, one.id)] * 2


def test_rounds_go_on_whatever_happens_in_one(
    world: World, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    notes: list[str] = []
    dispatcher = world.dispatchers[0]
    dispatcher._note = notes.append
    capacity = world.jobs.capacity
    troubles = iter(
        [
            JobsUnreachableError("away"),
            JobsUnreachableError("away"),  # said once
            StoreUnreachableError("gone"),
            ZeroDivisionError("odd"),
        ]
    )

    def troubled() -> Any:
        if (trouble := next(troubles, None)) is not None:
            raise trouble
        stop.set()
        return capacity()

    monkeypatch.setattr(world.jobs, "capacity", troubled)
    submit("one", to=world.queue)
    dispatcher.run(stop, pause_s=0.0)
    assert notes == ["away", "gone", "dispatcher: a round failed, got ZeroDivisionError: odd"]
    assert world.queue.entry("one").state is S.STARTING
    assert leader(world.store.database) is None  # given up for the next one


def test_the_policy_may_say_what_the_cluster_has(world: World) -> None:
    limited = Policy.model_validate({"capacity": {"cpus": 3.0, "gpus": 1.0}})
    capacity = capacity_of(world.jobs, limited)
    assert (capacity.total, capacity.nodes) == (Resources(3, 1), (Resources(8),))
    assert capacity_of(world.jobs, Policy()).total == Resources(8)


def test_the_decision_of_now_says_why_each_one_waits(
    world: World, one: Entry, submit: Submit
) -> None:
    for name, priority in (("two", 1), ("three", 0)):
        submit(name, to=world.queue, priority=priority, compute={"cpus_per_worker": 5.0})
    waiting = world.queue.waiting()
    decision = decide_now(world.queue, world.attempts, world.jobs.capacity(), waiting)
    reasons = {entry.name: decision.places[entry.id].reason for entry in waiting}
    assert reasons == {"two": Reason.NEXT, "three": Reason.ROOM}
    assert world.queue.counts() == {"QUEUED": 2, "STARTING": 1}  # nothing was done


def test_what_a_dispatcher_does_is_in_the_log_with_its_name(
    world: World, one: Entry, log: EventLog
) -> None:
    admitted = [event for event in log.after(Cursor()) if event.kind == "admitted"]
    assert [(event.actor, event.data["attempt"], event.data["granted"]) for event in admitted] == [
        ("elsewhere:1:0:0", 1, "2 cores")
    ]
