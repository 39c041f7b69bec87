"""The front of the queue: few of many, and the same start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from any_queue import clusters, holdings, long_queues, policies, usages
from asking import NOW, cluster
from hypothesis import HealthCheck, given, settings

from focus_lab.lab.queue.admission import Grant, Holding, Usage, Waiting, decide
from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.front import could_start, front
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import ExperimentRow, QueueRow

Submit = Callable[..., tuple[Entry, bool]]


def write(store: Store, waiting: list[Waiting]) -> None:
    """A queue of nobody else, without what admission does not look at."""
    experiments = [
        {"id": one.id, "name": one.id, "spec": {}, "folder": "", "created_at": NOW}
        for one in waiting
    ]
    rows = [
        {
            "experiment_id": one.id, "name": one.id, "description": "", "user": one.user,
            "project": one.project, "fingerprint": "", "priority": one.priority,
            "state": QueueState.QUEUED, "version": 0, "attempt": 0, "losses": 0,
            "trials": one.trials, "gang_cpus": one.gang.total.cpus,
            "gang_gpus": one.gang.total.gpus, "worker_cpus": one.gang.worker.cpus,
            "worker_gpus": one.gang.worker.gpus,
            "auto_gpus": float(one.gang.workers) if one.auto_gpus else 0.0,
            "submitted_at": one.queued_at, "queued_at": one.queued_at,
        }
        for one in waiting
    ]  # fmt: skip
    with store.database.session() as session:
        session.execute(sa.delete(QueueRow))
        session.execute(sa.delete(ExperimentRow))
        if waiting:
            session.execute(ExperimentRow.insert(), experiments)
            session.execute(QueueRow.insert(), rows)


def grants(
    waiting: list[Waiting], holding: list[Holding], capacity: Capacity, usage: Usage, policy: Policy
) -> tuple[Grant, ...]:
    return decide(waiting, holding, capacity, usage, policy, NOW).grants


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(long_queues(), holdings, clusters, usages, policies)
def test_in_any_queue_the_front_alone_gets_what_it_gets_among_all(
    store: Store,
    waiting: list[Waiting],
    holding: list[Holding],
    capacity: Capacity,
    usage: Usage,
    policy: Policy,
) -> None:
    write(store, waiting)
    few = [entry.waiting for entry in front(store.database, capacity)]
    assert grants(few, holding, capacity, usage, policy) == grants(
        waiting, holding, capacity, usage, policy
    )


def test_of_each_class_the_earliest_matter_as_many_as_fit_and_one_more(
    store: Store, submit: Submit, clock: Any
) -> None:
    for number in range(6):
        for user in ("alice", "bob"):
            submit(f"{user}-{number}", user=user, priority=number // 5)
        clock.advance(seconds=1)
    submit("large", compute={"cpus_per_worker": 3.0})
    clock.advance(seconds=1)
    submit("larger", compute={"cpus_per_worker": 3.0})
    found = {entry.name for entry in front(store.database, cluster((2.0, 0.0)))}
    # Nobody knows better than the decision whether somebody could never fit.
    matter = {f"{user}-{number}" for user in ("alice", "bob") for number in (0, 1, 2, 5)}
    assert found == matter | {"large"}
    assert len(front(store.database, cluster((100.0, 0.0)))) == 14


def test_only_those_who_wait_are_looked_at(store: Store, bring: Callable[..., Entry]) -> None:
    for state in QueueState:
        bring(state, state.value.lower())
    assert [entry.name for entry in front(store.database, cluster((99.0, 9.0)))] == ["queued"]


@pytest.mark.parametrize(("cores", "could"), [(0.9, False), (1.0, True)])
def test_deciding_is_worth_its_while_where_somebody_needs_no_more_than_is_free(
    store: Store, submit: Submit, cores: float, could: bool
) -> None:
    assert not could_start(store.database, Resources(cores))
    submit("one")
    submit("large", compute={"cpus_per_worker": 8.0})
    assert could_start(store.database, Resources(cores)) is could
