"""How a trial goes on after a failure: every class has its budget, and none is without end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.lab.failure import (
    LOST,
    NO_ROOM,
    OUT_OF_MEMORY,
    PREEMPTED,
    STALLED,
    STORAGE_AWAY,
    Failure,
)
from focus_lab.lab.recovery import RECORD, Attempt, Decision, Recovery, decide, may_go_on
from focus_lab.specs.training import ComputeSpec

KINDS = [
    LOST, STALLED, PREEMPTED, OUT_OF_MEMORY, NO_ROOM, STORAGE_AWAY, "NonFiniteLossError",
    "DataError",
]  # fmt: skip


def failure(kind: str) -> Failure:
    return Failure(kind, "something happened")


@pytest.mark.parametrize("kind", [LOST, STALLED, NO_ROOM])
def test_a_lost_or_hung_worker_is_replaced_as_often_as_the_budget_says(kind: str) -> None:
    compute = ComputeSpec(max_failures=2)
    past: list[Decision] = []
    for _ in range(3):
        past.append(decide(failure(kind), past, compute, 4))
    assert [decision.action for decision in past] == ["retry", "retry", "fail"]
    assert past[0].remedy == "going on, 1 more times at most"
    assert past[2].failure.message == (
        "something happened; that was once more than compute.max_failures allows, 2"
    )


def test_lost_and_hung_workers_share_a_budget_and_preemptions_have_their_own() -> None:
    compute = ComputeSpec(max_failures=1, max_preemptions=2)
    past: list[Decision] = []
    for kind in (PREEMPTED, LOST, PREEMPTED, STALLED):
        past.append(decide(failure(kind), past, compute, 4))
    assert [decision.action for decision in past] == ["retry", "retry", "retry", "fail"]


def test_waiting_for_the_trials_beside_it_costs_no_budget() -> None:
    compute = ComputeSpec(max_failures=1)
    past: list[Decision] = []
    for _ in range(5):
        past.append(decide(failure(NO_ROOM), past, compute, 4, crowded=True))
    assert {decision.action for decision in past} == {"wait"}
    assert past[0].remedy == "waiting for the trials beside it"
    past.append(decide(failure(LOST), past, compute, 4, crowded=True))
    past.append(decide(failure(NO_ROOM), past, compute, 4))
    assert [decision.action for decision in past[5:]] == ["retry", "fail"]


def test_a_storage_that_is_away_is_asked_again_ten_times() -> None:
    past: list[Decision] = []
    while not past or past[-1].action == "retry":
        past.append(decide(failure(STORAGE_AWAY), past, ComputeSpec(max_failures=0), 4))
    assert len(past) == 11
    assert past[-1].remedy == "that was once more than a trial allows, 10"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("halve", [True, False])
def test_only_what_may_go_on_ever_goes_on(kind: str, halve: bool) -> None:
    compute = ComputeSpec(halve_on_out_of_memory=halve)
    goes_on = decide(failure(kind), [], compute, 8).action != "fail"
    assert goes_on == may_go_on(kind, compute)


def test_exhausted_memory_fails_with_its_remedy_unless_halving_is_asked_for() -> None:
    decision = decide(failure(OUT_OF_MEMORY), [], ComputeSpec(), 8)
    assert decision.action == "fail"
    assert "set compute.halve_on_out_of_memory to true" in decision.failure.message


def test_exhausted_memory_halves_down_to_one_image() -> None:
    compute = ComputeSpec(halve_on_out_of_memory=True)
    past: list[Decision] = []
    while not past or past[-1].action == "halve":
        past.append(decide(failure(OUT_OF_MEMORY), past, compute, 8))
    assert [decision.remedy for decision in past[:-1]] == [
        "going on with 4 instead of 8 images at a time",
        "going on with 2 instead of 4 images at a time",
        "going on with 1 instead of 2 images at a time",
    ]
    assert "a single image does not fit" in past[-1].failure.message
    # As a batch is split: parts of 6 in 4 are 2 at most.
    odd = decide(failure(OUT_OF_MEMORY), past[:1], compute, 6)
    assert odd.remedy == "going on with 2 instead of 3 images at a time"


@pytest.mark.parametrize("kind", ["NonFiniteLossError", "DataError", "KeyError"])
def test_what_a_trial_does_to_itself_is_not_repeated(kind: str) -> None:
    decision = decide(failure(kind), [], ComputeSpec(max_failures=9, max_preemptions=9), 4)
    assert decision.action == "fail"
    assert decision.failure == Failure(kind, "something happened")


@given(
    st.lists(st.sampled_from(KINDS), min_size=40, max_size=60),
    st.integers(0, 4),
    st.integers(0, 4),
    st.booleans(),
    st.integers(1, 64),
)
def test_no_sequence_of_failures_is_endless(
    kinds: list[str], failures: int, preemptions: int, halve: bool, images: int
) -> None:
    compute = ComputeSpec(
        max_failures=failures, max_preemptions=preemptions, halve_on_out_of_memory=halve
    )
    past: list[Decision] = []
    for kind in kinds:
        past.append(decide(failure(kind), past, compute, images))
        if past[-1].action == "fail":
            break
    assert past[-1].action == "fail"
    assert len(past) <= failures + preemptions + 6 + 10 + 1


def test_decisions_are_kept_with_the_trial_and_halvings_outlive_the_sweep(tmp_path: Path) -> None:
    compute = ComputeSpec(halve_on_out_of_memory=True, max_failures=1)
    first = Recovery(tmp_path, compute, 8)
    assert first.attempt == Attempt(0, parts=1)
    assert first.decide(failure(OUT_OF_MEMORY)).action == "halve"
    assert first.decide(failure(LOST)).action == "retry"
    assert first.attempt == Attempt(2, parts=2)
    again = Recovery(tmp_path, compute, 8)
    assert again.attempt == Attempt(2, parts=2)
    # The same command again is a new start: the budget of lost workers is whole.
    assert again.decide(failure(LOST)).action == "retry"
    remedy = again.decide(failure(OUT_OF_MEMORY)).remedy
    assert remedy == "going on with 2 instead of 4 images at a time"
    assert Recovery(tmp_path, compute, 8).attempt.parts == 4
    assert (tmp_path / RECORD).read_text().count(OUT_OF_MEMORY) == 2


def test_a_torn_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text('[{"kind": "Worker')
    assert Recovery(tmp_path, ComputeSpec(), 4).attempt == Attempt()


def test_a_disk_that_takes_no_record_ends_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    recovery = Recovery(tmp_path / "file", ComputeSpec(max_failures=1), 4)
    assert [recovery.decide(failure(LOST)).action for _ in range(2)] == ["retry", "fail"]
