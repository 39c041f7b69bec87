"""Whose turn it is: what is granted, who waits, and whether the reason given is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
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
from focus_lab.lab.queue.policy import Policy, Quota, Quotas

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
OF_QUOTAS = {
    Reason.USER_RUNNING,
    Reason.USER_HOURS,
    Reason.PROJECT_RUNNING,
    Reason.PROJECT_HOURS,
}


def waits(
    name: str = "a",
    cpus: float = 1.0,
    gpus: float = 0.0,
    *,
    workers: int = 1,
    user: str = "alice",
    project: str = "default",
    priority: int = 0,
    minutes: float = 0.0,
    trials: int = 1,
    auto: bool = False,
) -> Waiting:
    gang = Gang(Resources(cpus, gpus), workers)
    since = NOW - timedelta(minutes=minutes)
    return Waiting(name, user, project, priority, since, gang, trials, auto)


def holds(
    cpus: float, gpus: float = 0.0, *, workers: int = 1, name: str = "h", user: str = "x",
    project: str = "x",
) -> Holding:  # fmt: skip
    return Holding(name, user, project, Gang(Resources(cpus, gpus), workers))


def cluster(*nodes: tuple[float, float], limit: tuple[float, float] | None = None) -> Capacity:
    found = tuple(Resources(cpus, gpus) for cpus, gpus in nodes)
    return Capacity(found, Resources(*limit) if limit else None)


def ask(
    *waiting: Waiting,
    on: Capacity | None,
    holding: tuple[Holding, ...] = (),
    usage: Usage | None = None,
    **policy: object,
) -> Decision:
    return decide(waiting, holding, on, usage or Usage(), Policy.model_validate(policy), NOW)


def texts(decision: Decision) -> dict[str, str]:
    return {name: place.text for name, place in decision.places.items()}


# What may happen in any queue

users, projects = st.sampled_from(["alice", "bob", "carol"]), st.sampled_from(["x", "y"])


@st.composite
def queues(draw: st.DrawFn) -> list[Waiting]:
    return [
        waits(
            f"{number:02d}",
            draw(st.sampled_from([0.1, 0.5, 1.0, 3.0, 8.0])),
            draw(st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.5, 0.6, 1.0, 2.0])),
            workers=draw(st.sampled_from([1, 1, 1, 2, 4])),
            user=draw(users),
            project=draw(projects),
            priority=draw(st.integers(-5, 5)),
            minutes=draw(st.sampled_from([0, 5, 10, 60, 3000])),
            trials=draw(st.integers(1, 20)),
            auto=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 10)))
    ]


nodes = st.tuples(st.sampled_from([0.0, 1.0, 2.0, 4.0, 16.0]), st.sampled_from([0.0, 1.0, 4.0]))
clusters = st.builds(
    lambda parts, limit: cluster(*parts, limit=limit),
    st.lists(nodes, max_size=4),
    st.none() | st.tuples(st.sampled_from([2.0, 20.0]), st.sampled_from([0.0, 1.5, 8.0])),
)
holdings = st.lists(
    st.builds(
        Holding,
        st.uuids().map(str),
        users,
        projects,
        st.builds(
            Gang,
            st.builds(
                Resources, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 0.3, 1.0])
            ),
            st.integers(1, 3),
        ),
    ),
    max_size=4,
)
hours = st.sampled_from([0.0, 1.0, 9.0, 10.0, 11.0])
usages = st.builds(
    Usage,
    st.dictionaries(users, hours),
    st.dictionaries(projects, hours),
    st.dictionaries(users, hours),
)
quotas = st.builds(
    Quota,
    running=st.none() | st.integers(1, 3),
    gpu_hours=st.none() | st.sampled_from([0.0, 10.0]),
)
policies = st.builds(
    Policy,
    quotas=st.builds(
        Quotas,
        default_user=quotas,
        default_project=quotas,
        users=st.dictionaries(users, quotas, max_size=1),
    ),
    largest_share=st.sampled_from([0.1, 0.5, 1.0]),
    reserve_after_minutes=st.sampled_from([0.0, 10.0, 1e6]),
    share_weight=st.sampled_from([0.0, 10.0]),
)


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
            busy.append((one.user, one.project))
        waited = (NOW - one.queued_at).total_seconds() / 60
        if place.reason in (Reason.ROOM, Reason.ORDER) and waited >= policy.reserve_after_minutes:
            left.keep(one.gang)


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
    waiting: list[Waiting], capacity: Capacity, usage: Usage, random: object
) -> None:
    shuffled = list(waiting)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
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


# Rounds: time goes by, experiments end, others come


@dataclass
class Cluster:
    """A queue played minute by minute: every experiment runs for a given time."""

    capacity: Capacity
    policy: Policy
    minutes_each: int
    at: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    running: dict[str, tuple[Holding, int]] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    """Core-hours by user."""

    def minute(self, *arrivals: Waiting) -> None:
        now = NOW + timedelta(minutes=self.at)
        self.waiting += [replace(one, queued_at=now) for one in arrivals]
        self.running = {name: (h, end) for name, (h, end) in self.running.items() if end > self.at}
        holding = [held for held, _ in self.running.values()]
        usage = Usage(cpu_hours=self.used)
        decision = decide(self.waiting, holding, self.capacity, usage, self.policy, now)
        by_id = {one.id: one for one in self.waiting}
        for grant in decision.grants:
            one = by_id.pop(grant.id)
            held = Holding(one.id, one.user, one.project, one.gang.times(grant.trials))
            self.running[one.id] = held, self.at + self.minutes_each
            self.started[one.id] = self.at
        for held, _ in self.running.values():
            self.used[held.user] = self.used.get(held.user, 0.0) + held.gang.total.cpus / 60
        self.waiting = list(by_id.values())
        self.at += 1

    def play(self, minutes: int, arrivals: Callable[[int], list[Waiting]]) -> None:
        while self.at < minutes:
            self.minute(*arrivals(self.at))


def important(minute: int) -> list[Waiting]:
    """One more important experiment every minute, of a user who has nothing yet."""
    return [waits(f"important-{minute}", user=f"user-{minute}", priority=5, trials=1)]


@pytest.mark.parametrize(("ageing", "starts"), [(10.0, True), (1e-9, False)])
def test_nobody_starves_among_endless_arrivals_of_higher_priority(
    ageing: float, starts: bool
) -> None:
    # Two and a half times as much comes as four cores can do.
    policy = Policy(ageing_per_hour=ageing, share_weight=0.0)
    played = Cluster(cluster((4.0, 0.0)), policy, minutes_each=10)
    played.minute(*(waits(f"first-{n}", user="root", priority=9) for n in range(4)))
    played.minute(waits("patient", priority=0))
    # Whoever comes 5 / 10 h later is behind it: 30 are before it, each 10 minutes on 1 of 4 cores.
    played.play(130, important)
    assert ("patient" in played.started) is starts
    if starts:
        assert played.started["patient"] <= 30 + 30 * 10 / 4 + 10


@pytest.mark.parametrize(("reserve", "starts"), [(10.0, True), (1e9, False)])
@pytest.mark.parametrize(
    ("machines", "small_cpus", "large_cpus", "every"),
    [
        (((4.0, 0.0),) * 2, 1.0, 4.0, 3),
        # In all there is room beside it for a small one, which would take a machine that it needs.
        (((8.0, 0.0),) * 4, 5.0, 5.0, 8),
    ],
)
def test_a_large_trial_is_not_starved_by_small_ones(
    machines: tuple[tuple[float, float], ...], small_cpus: float, large_cpus: float, every: int,
    reserve: float, starts: bool,
) -> None:  # fmt: skip
    policy = Policy(reserve_after_minutes=reserve, share_weight=0.0)
    played = Cluster(cluster(*machines), policy, minutes_each=30)

    def small(minute: int) -> list[Waiting]:
        one = waits(f"small-{minute}", cpus=small_cpus, user=f"user-{minute}")
        return [one] if minute % every == 0 else []

    played.play(60, small)
    played.minute(waits("large", cpus=large_cpus, workers=2))
    played.play(400, small)
    assert ("large" in played.started) is starts
    if starts:
        # Ten minutes until it keeps others from passing, thirty until the last one has ended.
        assert played.started["large"] <= 60 + 10 + 30 + 1
        # And afterwards all goes on.
        assert max(played.started.values()) >= played.started["large"] + 30


def test_a_user_who_comes_later_waits_for_one_end_and_not_for_all_of_anothers_queue() -> None:
    played = Cluster(cluster((2.0, 0.0)), Policy(), minutes_each=60)
    played.minute(*(waits(f"many-{n:02d}", user="bob") for n in range(50)))
    played.play(90, lambda minute: [])
    played.minute(waits("one", user="alice"))
    played.play(200, lambda minute: [])
    assert played.started["one"] == 120


# By hand


def test_the_score_is_priority_and_waiting_less_the_share() -> None:
    policy = Policy(ageing_per_hour=2.0, share_weight=10.0)
    one = waits(priority=3, minutes=90)
    assert score(one, {}, policy, NOW) == pytest.approx(3 + 2 * 1.5)
    assert score(one, {"alice": 0.25, "bob": 0.75}, policy, NOW) == pytest.approx(3.5)
    # A clock that was put back makes nobody wait less than nothing.
    assert score(waits(minutes=-60), {}, policy, NOW) == 0.0


def test_the_share_is_that_of_the_past_and_that_of_the_cluster_now() -> None:
    held = (holds(8, 1, workers=2, user="alice"),)
    usage = Usage({"alice": 3.0, "bob": 1.0}, {}, {"alice": 0.0, "bob": 50.0})
    assert _shares(held, cluster((32, 8)), usage) == {"alice": 0.75 + 0.25, "bob": 0.25}
    # Where there are no GPUs, cores count.
    assert _shares(held, cluster((32, 0)), usage) == {"alice": 0.0 + 0.5, "bob": 1.0}
    assert _shares((), None, Usage()) == {}


def test_positions_follow_priority_then_waiting_then_name() -> None:
    decision = ask(
        waits("late", minutes=10),
        waits("first", priority=1),
        waits("b", minutes=20),
        waits("a", minutes=20),
        on=cluster((1, 0)),
    )
    order = sorted(decision.places, key=lambda name: decision.places[name].position)
    assert order == ["first", "a", "b", "late"]


@pytest.mark.parametrize(
    ("weight", "order"),
    [(10.0, ["a1", "b1", "a2", "b2", "a3"]), (0.0, ["a1", "a2", "a3", "b1", "b2"])],
)
def test_users_who_have_nothing_yet_take_turns_within_one_round(
    weight: float, order: list[str]
) -> None:
    alices = [waits(f"a{n}", minutes=9 - n) for n in (1, 2, 3)]
    bobs = [waits(f"b{n}", user="bob", minutes=5 - n) for n in (1, 2)]
    decision = ask(*alices, *bobs, on=cluster((4, 0)), share_weight=weight, largest_share=0.25)
    assert [grant.id for grant in decision.grants] == order[:4]
    assert sorted(decision.places, key=lambda name: decision.places[name].position) == order


@pytest.mark.parametrize(
    ("waiting", "granted"),
    [
        # Alone it may have all that it can use.
        ([waits("a", trials=100)], {"a": 8}),
        ([waits("a", trials=3)], {"a": 3}),
        ([waits("a", cpus=3, trials=100)], {"a": 2}),
        # Beside another one half of the eight cores.
        ([waits("a", trials=100), waits("b", trials=100)], {"a": 4, "b": 4}),
        ([waits("a", trials=100), waits("b", trials=2)], {"a": 4, "b": 2}),
        # A trial that is larger than half is one trial.
        ([waits("a", cpus=5, trials=9), waits("b", cpus=3, trials=9)], {"a": 1, "b": 1}),
        # Whoever could never start is nobody to share with.
        ([waits("a", trials=100), waits("b", cpus=9)], {"a": 8}),
        ([waits("a", trials=100), waits("b", user="kept")], {"a": 8}),
        # Whoever only lacks room is.
        ([waits("b", cpus=7, trials=1, priority=1), waits("a", trials=9), waits("c", cpus=8)],
         {"b": 1, "a": 1}),
    ],
)  # fmt: skip
def test_how_many_trials_run_side_by_side(waiting: list[Waiting], granted: dict[str, int]) -> None:
    kept = {"users": {"kept": {"running": 1}}}
    holding = (holds(0, user="kept"),)
    decision = ask(*waiting, on=cluster((8, 0)), holding=holding, quotas=kept)
    assert {grant.id: grant.trials for grant in decision.grants} == granted


def test_two_of_a_user_who_may_run_one_do_not_share_with_each_other() -> None:
    one_each = {"default_user": {"running": 1}}
    decision = ask(
        waits("a", trials=100), waits("b", trials=100), on=cluster((8, 0)), quotas=one_each
    )
    assert decision.grants == (Grant("a", 8, Resources(8)),)
    assert texts(decision)["b"] == "user alice runs 1 of 1 experiments"


def test_fractions_of_gpus_add_up() -> None:
    # 0.1 is no binary fraction: ten of them are not quite one.
    decision = ask(waits("a", 0.1, 0.1, trials=99), on=cluster((4, 1)))
    assert decision.grants[0].trials == 10
    nine = tuple(holds(0.1, 0.1, name=str(n)) for n in range(9))
    assert (
        ask(waits("a", 0.1, 0.1, trials=9), on=cluster((4, 1)), holding=nine).grants[0].trials == 1
    )
    full = (*nine, holds(0.1, 0.1, name="9"))
    decision = ask(waits("a", 0.1, 0.1), on=cluster((4, 1)), holding=full)
    assert texts(decision)["a"] == (
        "a trial needs 0.1 GPUs and 0.1 cores; free now: 0 GPUs and 3 cores"
    )


def test_what_is_left_over_on_each_machine_is_of_no_use() -> None:
    # Three times 0.6 are less than two GPUs, and yet there is room for two.
    decision = ask(waits("a", 1, 0.6, trials=9), on=cluster((8, 1), (8, 1)))
    assert decision.grants[0].trials == 2
    # Two workers, each 3 of the 4 cores of a machine: one trial on two machines, none on three
    # halves of one.
    pairs = waits("a", cpus=3, workers=2, trials=9)
    assert ask(pairs, on=cluster((4, 0), (4, 0), (4, 0))).grants[0].trials == 1


def test_a_worker_that_no_single_machine_has_room_for_waits_and_says_so() -> None:
    two = cluster((8, 4), (8, 4))
    # Six of eight GPUs are held, three on each machine at best.
    held = (holds(1, 3, workers=2),)
    pair, one = waits("pair", 1, 2, priority=1), waits("one", 1, 1, trials=9)
    decision = ask(pair, one, on=two, holding=held)
    assert texts(decision)["pair"] == (
        "a trial needs 2 GPUs and 1 core, with 2 GPUs and 1 core for each worker on one machine; "
        "free now: 2 GPUs and 14 cores, spread over the machines"
    )
    # What fits beside starts, and keeps its share: somebody waits for room.
    assert decision.grants == (Grant("one", 2, Resources(2, 2)),)
    # A gang of two fits, one worker on each.
    assert len(ask(waits("gang", 1, 1, workers=2), on=two, holding=held).grants) == 1


def test_what_is_granted_within_one_round_takes_room_on_machines_as_well() -> None:
    three = (waits(name, cpus=3) for name in "abc")
    decision = ask(*three, on=cluster((4, 0), (5, 0)))
    assert [grant.id for grant in decision.grants] == ["a", "b"]
    assert texts(decision)["c"] == (
        "a trial needs 3 cores, with 3 cores for each worker on one machine; free now: 3 cores, "
        "spread over the machines"
    )


@pytest.mark.parametrize("cores", [5e-324, 1e-9])
def test_crumbs_of_a_core_are_no_trouble(cores: float) -> None:
    [grant] = ask(waits("a", cpus=cores, trials=7), on=cluster((4, 0))).grants
    assert grant.trials == 7


def test_what_exceeds_every_number_is_too_large_and_nothing_else() -> None:
    huge = waits("huge", cpus=1e308, workers=4)
    decision = ask(huge, waits("a"), on=cluster((4, 0)))
    assert decision.places["huge"].reason is Reason.TOO_LARGE
    assert [grant.id for grant in decision.grants] == ["a"]


def test_auto_takes_a_gpu_a_worker_where_there_is_one() -> None:
    one = waits("a", cpus=2, workers=2, trials=9, auto=True)
    assert ask(one, on=cluster((64, 0))).grants == (Grant("a", 9, Resources(36)),)
    [grant] = ask(one, on=cluster((64, 0), (64, 8))).grants
    assert grant == Grant("a", 4, Resources(16, 8))
    # The cluster may have none yet, and grow.
    [grant] = ask(one, on=cluster((64, 0), limit=(64, 2))).grants
    assert grant == Grant("a", 1, Resources(4, 2))
    # The executor would take what the queue may not.
    decision = ask(one, on=cluster((64, 8), limit=(64, 0)))
    assert decision.places["a"].reason is Reason.TOO_LARGE


def test_a_limit_counts_instead_of_the_machines() -> None:
    # Machines come when they are needed: none is measured.
    pair = waits("a", cpus=8, workers=2, trials=9)
    [grant] = ask(pair, on=cluster((2, 0), limit=(40, 0))).grants
    assert grant.trials == 2
    assert ask(pair, on=cluster((64, 0), limit=(15, 0))).grants == ()


def test_a_cluster_that_has_shrunk_below_what_is_held_grants_nothing() -> None:
    held = (holds(16),)
    decision = ask(waits("a"), on=cluster((4, 0)), holding=held)
    assert decision.grants == ()
    assert texts(decision) == {"a": "a trial needs 1 core; free now: 0 cores"}


def test_whoever_waits_for_room_for_a_short_time_may_be_passed() -> None:
    held = (holds(1),)
    large, small = waits("large", cpus=4, minutes=9, priority=5), waits("small")
    assert [g.id for g in ask(large, small, on=cluster((4, 0)), holding=held).grants] == ["small"]
    longer = replace(large, queued_at=NOW - timedelta(minutes=10))
    decision = ask(longer, small, on=cluster((4, 0)), holding=held)
    assert decision.grants == ()
    assert decision.places["small"].reason is Reason.ORDER


def test_room_is_kept_of_what_is_needed_and_of_nothing_else() -> None:
    held = (holds(0, 6),)
    large = waits("large", cpus=4, gpus=4, minutes=60, priority=9)
    gpus = waits("gpus", gpus=1)
    cores = waits("cores", cpus=2, trials=9)
    # Sixteen cores and two GPUs are free: it keeps the GPUs, and four of the cores.
    decision = ask(large, gpus, cores, on=cluster((16, 8)), holding=held, largest_share=1.0)
    assert decision.grants == (Grant("cores", 6, Resources(12)),)
    reasons = {name: place.reason for name, place in decision.places.items()}
    assert reasons == {"large": Reason.ROOM, "gpus": Reason.ORDER, "cores": Reason.NEXT}
    # A second one that has waited long keeps its part, too.
    second = waits("second", cpus=8, gpus=2, minutes=60, priority=8)
    decision = ask(large, second, gpus, cores, on=cluster((16, 8)), holding=held, largest_share=1.0)
    assert decision.grants == (Grant("cores", 2, Resources(4)),)


HELD = (holds(3, 1, user="bob", project="vision"),)
SENTENCES: list[tuple[Reason, Waiting, dict[str, object], str]] = [
    (
        Reason.NEXT,
        waits(),
        {},
        "starts with the next round",
    ),
    (
        Reason.ROOM,
        waits(cpus=4, gpus=2),
        {},
        "a trial needs 2 GPUs and 4 cores; free now: 1 GPU and 5 cores",
    ),
    (
        Reason.TOO_LARGE,
        waits(cpus=3, workers=4),
        {},
        "a trial needs 12 cores, with 3 cores for each worker on one machine; the whole cluster "
        "has 2 GPUs and 8 cores on 2 machines: lower compute.* of the spec, or add machines",
    ),
    (
        Reason.USER_RUNNING,
        waits(user="bob"),
        {"default_user": {"running": 1}},
        "user bob runs 1 of 1 experiments",
    ),
    (
        Reason.USER_HOURS,
        waits(gpus=1),
        {"users": {"alice": {"gpu_hours": 12.5}}},
        "user alice has used 12.5 of 12.5 GPU-hours",
    ),
    (
        Reason.PROJECT_RUNNING,
        waits(project="vision"),
        {"projects": {"vision": {"running": 1}}},
        "project vision runs 1 of 1 experiments",
    ),
    (
        Reason.PROJECT_HOURS,
        waits(gpus=1, project="vision"),
        {"default_project": {"gpu_hours": 100}},
        "project vision has used 140.2 of 100 GPU-hours",
    ),
]


@pytest.mark.parametrize(("reason", "one", "limits", "text"), SENTENCES)
def test_every_reason_is_a_sentence(
    reason: Reason, one: Waiting, limits: dict[str, object], text: str
) -> None:
    usage = Usage({"alice": 12.5}, {"vision": 140.25})
    decision = ask(one, on=cluster((4, 2), (4, 0)), holding=HELD, usage=usage, quotas=limits)
    assert decision.places["a"] == Place(1, reason, text)


def test_what_a_limit_or_one_machine_is_too_small_for_is_said() -> None:
    assert texts(ask(waits(cpus=9), on=cluster((99, 0), limit=(8, 0))))["a"] == (
        "a trial needs 9 cores, with 9 cores for each worker on one machine; the queue may use "
        "8 cores in all: lower compute.* of the spec, or add machines"
    )
    assert (
        "has 0 GPUs and 9 cores on 1 machine:" in texts(ask(waits(gpus=1), on=cluster((9, 0))))["a"]
    )


def test_who_keeps_others_from_passing_is_named() -> None:
    large = waits("large", cpus=4, workers=2, minutes=60, priority=3)
    decision = ask(waits("tiny", priority=-1), large, on=cluster((4, 2), (4, 0)), holding=HELD)
    assert decision.places["tiny"] == Place(
        2, Reason.ORDER, "room is kept for number 1 in line, which has waited long"
    )


def test_gpu_hours_that_are_used_up_keep_no_experiment_on_cores() -> None:
    decision = ask(
        waits("cores"), waits("gpu", gpus=1), on=cluster((4, 2)),
        usage=Usage({"alice": 5.0}), quotas={"default_user": {"gpu_hours": 5}},
    )  # fmt: skip
    assert [grant.id for grant in decision.grants] == ["cores"]


def test_without_a_cluster_everybody_has_a_place_and_nobody_starts() -> None:
    decision = ask(waits("a"), waits("b", priority=1), on=None)
    text = "the Ray cluster does not answer, or has no machine; it starts when there is one"
    assert decision == ask(waits("a"), waits("b", priority=1), on=cluster())
    assert decision.grants == ()
    assert decision.places == {
        "b": Place(1, Reason.NO_CLUSTER, text),
        "a": Place(2, Reason.NO_CLUSTER, text),
    }


def test_every_reason_is_tried_above() -> None:
    tried = {sentence[0] for sentence in SENTENCES} | {Reason.ORDER, Reason.NO_CLUSTER}
    assert tried == set(Reason)


@pytest.mark.parametrize(
    ("cpus", "gpus", "text"),
    [
        (0.0, 0.0, "0 cores"),
        (1.0, 0.0, "1 core"),
        (0.5, 1.0, "1 GPU and 0.5 cores"),
        (12.0, 0.25, "0.25 GPUs and 12 cores"),
    ],
)
def test_resources_are_shown_as_a_person_says_them(cpus: float, gpus: float, text: str) -> None:
    assert str(Resources(cpus, gpus)) == text
