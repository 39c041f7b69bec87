"""Early stopping: who goes on at a rung, whatever the order in which epochs are told."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from focus_lab.lab.early_stopping import Rungs, rungs_of
from focus_lab.specs.experiment import SuccessiveHalving

EPOCHS = 27


def rungs(**more: object) -> Rungs:
    return Rungs(SuccessiveHalving.model_validate({"kind": "asha", **more}))


def stops(made: Rungs, trial: str, epoch: int, ap: float) -> bool:
    return made.tell(trial, epoch, {"coco/AP": ap}, EPOCHS)


def test_the_first_to_come_goes_on_and_a_worse_one_after_it_does_not() -> None:
    made = rungs()
    assert not stops(made, "a", 1, 0.1)
    assert stops(made, "b", 1, 0.05)
    assert not stops(made, "c", 1, 0.2)


def test_of_six_trials_the_best_two_go_on() -> None:
    made = rungs()
    for number, ap in enumerate([0.6, 0.1, 0.2, 0.3, 0.4]):
        stops(made, str(number), 1, ap)
    # The sixth is second best of six, and 6 // 3 go on.
    assert not stops(made, "5", 1, 0.5)
    assert stops(made, "6", 1, 0.5 - 1e-9)


def test_rungs_are_at_epochs_and_not_at_reports() -> None:
    made = rungs(grace_epochs=2)
    stops(made, "good", 2, 0.9)
    stops(made, "good", 6, 0.9)
    # Before the first rung nobody is stopped; nor, once its rung is behind it, before the next one.
    assert not stops(made, "weak", 1, 0.0)
    assert stops(made, "weak", 2, 0.0)
    assert not stops(made, "weak", 3, 0.0)
    assert stops(made, "weak", 6, 0.0)


def test_a_trial_goes_by_its_first_evaluated_epoch_of_a_rung() -> None:
    made = rungs()
    stops(made, "good", 1, 0.9)
    assert not made.tell("weak", 1, {"loss/total": 1.0}, EPOCHS)
    assert stops(made, "weak", 2, 0.1)


def test_less_may_be_better() -> None:
    made = rungs(metric="loss/total", direction="min")
    assert not made.tell("a", 1, {"loss/total": 2.0}, EPOCHS)
    assert made.tell("b", 1, {"loss/total": 3.0}, EPOCHS)
    assert not made.tell("c", 1, {"loss/total": 1.0}, EPOCHS)


def test_nothing_is_stopped_at_its_last_epoch() -> None:
    made = rungs()
    stops(made, "a", 9, 0.9)
    assert not made.tell("b", 9, {"coco/AP": 0.1}, 9)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 26), st.floats(0, 1))))
def test_what_is_told_again_after_a_restart_decides_as_before(
    told: list[tuple[str, int, float]],
) -> None:
    """The rungs of a continued sweep are those that were told all epochs once."""
    once, again = rungs(), rungs()
    for trial, epoch, ap in told:
        stops(once, trial, epoch, ap)
    for trial, epoch, ap in [*told, *told]:
        stops(again, trial, epoch, ap)
    assert [stops(once, "new", e, 0.5) for e in (1, 3, 9)] == [
        stops(again, "new", e, 0.5) for e in (1, 3, 9)
    ]


@given(st.permutations(range(9)))
def test_the_best_of_all_is_never_stopped(order: list[int]) -> None:
    made = rungs()
    assert [made.tell(str(n), 1, {"coco/AP": n / 10}, EPOCHS) for n in order][
        order.index(8)
    ] is False


def test_a_stored_experiment_says_whether_it_stops_early() -> None:
    stored = {"sweep": {"early_stopping": {"kind": "asha", "grace_epochs": 2}}}
    assert rungs_of(json.loads(json.dumps(stored))) is not None
    assert rungs_of({"sweep": {"early_stopping": {"kind": "none"}}}) is None
    assert rungs_of({}) is None
