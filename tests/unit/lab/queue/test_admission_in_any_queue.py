"""What holds in any queue: what is granted fits, and every reason is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
from any_queue import clusters, holdings, policies, queues, usages
from asking import NOW, ask, cluster, waits
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.lab.queue.admission import (
    Decision,
    Grant,
    Holding,
    Place,
    Reason,
    Usage,
    Waiting,
    _shares,
    decide,
    score,
)
from focus_lab.lab.queue.capacity import Capacity, Gang, Resources, Room
from focus_lab.lab.queue.policy import Policy

OF_QUOTAS = {
    Reason.USER_RUNNING,
    Reason.USER_HOURS,
    Reason.PROJECT_RUNNING,
    Reason.PROJECT_HOURS,
}


@dataclass
class Turn:
    """What there is when somebody's turn comes, counted anew from the decision's own grants."""

    one: Waiting
    place: Place
    grant: Grant | None
    free: Resources
    has_room: bool
    """Whether machines have room for it, besides what is free in all."""
    has_left: bool
    """The same beside what is kept for others."""
    running_of_user: int
    running_of_project: int


def turns(
    waiting: list[Waiting],
    holding: list[Holding],
    capacity: Capacity,
    policy: Policy,
    decision: Decision,
) -> Iterator[Turn]:
    by_id = {one.id: one.on(capacity) for one in waiting}
    granted = {grant.id: grant for grant in decision.grants}
    used = [held.gang.total for held in holding]
    gangs = [held.gang for held in holding]
    room, left = Room(capacity, gangs), Room(capacity, gangs)
    provided: Counter[Gang] = Counter()
    busy: list[tuple[str, str]] = [(held.user, held.project) for held in holding]
    for name, place in sorted(decision.places.items(), key=lambda item: item[1].position):
        one, grant = by_id[name], granted.get(name)
        yield Turn(
            one,
            place,
            grant,
            capacity.total - sum(used, Resources()),
            room.count(one.gang) > 0,
            left.count(one.gang) > 0,
            sum(user == one.user for user, _ in busy),
            sum(project == one.project for _, project in busy),
        )
        if grant:
            used.append(grant.resources)
            for each in (room, left):
                each.take(one.gang.times(grant.trials))
            provided[one.gang] += grant.trials
            busy.append((one.user, one.project))
        waited = (NOW - one.queued_at).total_seconds() / 60
        long = waited >= policy.reserve_after_minutes
        of_room = place.reason in (Reason.ROOM, Reason.ORDER)
        if of_room and long and provided[one.gang] < capacity.empty.count(one.gang):
            left.keep(one.gang)
            provided[one.gang] += 1


def fits(one: Waiting, there: Resources) -> bool:
    """Whether there is what a trial needs; what it does not need may be lacking."""
    gang = one.gang.total
    return gang.cpus <= there.cpus + 1e-6 and (not gang.gpus or gang.gpus <= there.gpus + 1e-6)


def fits_empty(one: Waiting, capacity: Capacity) -> bool:
    """Put every worker of a trial on a machine of its own choice, one after the other."""
    if not capacity.total.holds(one.gang.total):
        return False
    if capacity.limit:
        return True
    worker = one.gang.worker
    left = list(capacity.nodes)
    for _ in range(one.gang.workers):
        for number, node in enumerate(left):
            if node.holds(worker):
                left[number] = node - worker
                break
        else:
            return False
    return True


@given(queues(), holdings, clusters, usages, policies)
def test_in_any_queue_grants_fit_quotas_hold_and_every_reason_is_true(
    waiting: list[Waiting],
    holding: list[Holding],
    capacity: Capacity,
    usage: Usage,
    policy: Policy,
) -> None:
    decision = decide(waiting, holding, capacity, usage, policy, NOW)
    assert decision.places.keys() == {one.id for one in waiting}
    positions = [place.position for place in decision.places.values()]
    assert sorted(positions) == list(range(1, len(waiting) + 1))

    free = capacity.total - sum((held.gang.total for held in holding), Resources())
    taken = sum((grant.resources for grant in decision.grants), Resources())
    assert taken.cpus <= max(0.0, free.cpus) + 1e-5
    assert taken.gpus <= max(0.0, free.gpus) + 1e-5

    for turn in turns(waiting, holding, capacity, policy, decision):
        one, reason = turn.one, turn.place.reason
        user = policy.quotas.of_user(one.user)
        project = policy.quotas.of_project(one.project)
        used = usage.gpu_hours.get(one.user, 0.0)
        used_by_project = usage.project_gpu_hours.get(one.project, 0.0)
        gpus = one.gang.worker.gpus > 0
        truths = {
            Reason.NO_CLUSTER: not capacity.nodes and not capacity.limit,
            Reason.TOO_LARGE: not fits_empty(one, capacity),
            Reason.USER_RUNNING: turn.running_of_user >= (user.running or 99),
            Reason.USER_HOURS: gpus and user.gpu_hours is not None and used >= user.gpu_hours,
            Reason.PROJECT_RUNNING: turn.running_of_project >= (project.running or 99),
            Reason.PROJECT_HOURS: (
                gpus and project.gpu_hours is not None and used_by_project >= project.gpu_hours
            ),
            Reason.ORDER: turn.has_room and not turn.has_left,
            Reason.ROOM: not fits(one, turn.free) or not turn.has_room,
        }
        if turn.grant is None:
            assert truths[reason], turn
        else:
            assert reason is Reason.NEXT
            assert not any(truths.values()), turn
            assert 1 <= turn.grant.trials <= one.trials
            assert turn.grant.resources == one.gang.times(turn.grant.trials).total


@given(queues(), holdings, clusters, usages, policies)
def test_whoevers_turn_it_is_has_the_highest_score_after_all_grants_before(
    waiting: list[Waiting],
    holding: list[Holding],
    capacity: Capacity,
    usage: Usage,
    policy: Policy,
) -> None:
    decision = decide(waiting, holding, capacity, usage, policy, NOW)
    granted = {grant.id: grant.trials for grant in decision.grants}
    left = sorted(waiting, key=lambda one: decision.places[one.id].position)
    holding = list(holding)
    while left:
        shares = _shares(holding, capacity, usage)
        best = max(score(one, shares, policy, NOW) for one in left)
        one = left.pop(0)
        assert score(one, shares, policy, NOW) == pytest.approx(best)
        if one.id in granted:
            gang = one.on(capacity).gang.times(granted[one.id])
            holding.append(Holding(one.id, one.user, one.project, gang))


@given(queues(), holdings, clusters, usages, policies)
def test_whoever_cannot_start_at_all_changes_nothing_for_the_others(
    waiting: list[Waiting],
    holding: list[Holding],
    capacity: Capacity,
    usage: Usage,
    policy: Policy,
) -> None:
    with_all = decide(waiting, holding, capacity, usage, policy, NOW)
    kept = {
        name
        for name, place in with_all.places.items()
        if place.reason in OF_QUOTAS | {Reason.TOO_LARGE, Reason.NO_CLUSTER}
    }
    others = [one for one in waiting if one.id not in kept]
    assert decide(others, holding, capacity, usage, policy, NOW).grants == with_all.grants


@given(queues(), clusters, usages, st.randoms(use_true_random=False))
def test_the_decision_does_not_depend_on_the_order_in_which_rows_are_read(
    waiting: list[Waiting], capacity: Capacity, usage: Usage, random: Random
) -> None:
    shuffled = list(waiting)
    random.shuffle(shuffled)
    first, second = (
        decide(rows, [], capacity, usage, Policy(), NOW) for rows in (waiting, shuffled)
    )
    assert first == second


@given(st.integers(0, 50), st.integers(0, 50), st.booleans())
def test_of_two_with_equal_priority_whoever_has_used_less_comes_first(
    alices: int, bobs: int, has_gpus: bool
) -> None:
    used = {"alice": float(alices), "bob": float(bobs)}
    usage = Usage(gpu_hours=used) if has_gpus else Usage(cpu_hours=used)
    pair = (waits("1", user="alice", minutes=30), waits("2", user="bob", minutes=30))
    decision = ask(*pair, on=cluster((1.0, 1.0 if has_gpus else 0.0)), usage=usage)
    [grant] = decision.grants
    assert grant.id == ("2" if bobs < alices else "1")
