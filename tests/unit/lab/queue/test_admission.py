"""Whose turn it is, by hand: scores, room, quotas, and what is said to whoever waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from asking import NOW, ask, cluster, holds, texts, waits

from focus_lab.lab.queue.admission import (
    Grant,
    Place,
    Reason,
    Usage,
    Waiting,
    _shares,
    score,
)
from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.policy import Policy


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


def test_of_those_who_need_the_same_room_is_kept_for_as_many_as_there_is_room_for() -> None:
    # Four may ever train at once: the cores of the other sixteen would be kept for nobody.
    held = tuple(holds(1, 1, name=f"h{number}") for number in range(4))
    long = [waits(f"{number:02d}", gpus=1, minutes=60, priority=9) for number in range(20)]
    cores = waits("cores", cpus=2, trials=9)
    decision = ask(*long, cores, on=cluster((16, 4)), holding=held, largest_share=1.0)
    assert decision.grants == (Grant("cores", 4, Resources(8)),)
    # What starts now is of those four.
    decision = ask(*long, cores, on=cluster((16, 4)), holding=held[:3], largest_share=1.0)
    assert decision.grants == (Grant("00", 1, Resources(1, 1)), Grant("cores", 4, Resources(8)))


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
