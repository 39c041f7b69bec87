"""What a trial would cost, and the profile of a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.model.token_selection import TokenSelector
from focus_lab.specs.data import DataSpec
from focus_lab.specs.experiment import ExperimentSpec, TrialSpec
from focus_lab.specs.plan import plan
from focus_lab.training import estimate as training_estimate
from focus_lab.training.estimate import Pace, estimate, measure_pace, over_budget
from focus_lab.training.profile import profile_model

MakeTrial = Callable[..., TrialSpec]


def test_steps_and_flops_of_every_cell_are_those_of_its_training(
    tiny_experiment: Callable[..., ExperimentSpec],
) -> None:
    spec = tiny_experiment(
        data={"num_train": 11},
        training={"epochs": 3},
        sweep={"axes": {"model.token_selection.keep_ratio": [0.1, 1.0]}, "seeds": [0, 1]},
    )
    small, large = estimate(plan(spec), measure=False)
    assert small.steps == large.steps == 6
    assert small.trials == large.trials == 2
    assert small.cost.total_macs < large.cost.total_macs
    assert small.seconds is None
    assert json.loads(json.dumps(large.as_dict()))["keep_ratio"] == 1.0


def test_steps_are_those_of_batches_grouped_by_aspect_and_data_is_opened_once(
    tiny_experiment: Callable[..., ExperimentSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_set, val_set = build_datasets(tiny_experiment(data={"num_train": 9}).data)
    sizes = ((32, 64),) * 5 + ((64, 32),) * 4
    monkeypatch.setattr(type(train_set), "sizes", property(lambda _: sizes))
    opened: list[DataSpec] = []

    def build(spec: DataSpec) -> tuple[DetectionDataset, DetectionDataset]:
        opened.append(spec)
        return train_set, val_set

    monkeypatch.setattr(training_estimate, "build_datasets", build)
    spec = tiny_experiment(
        data={"num_train": 9},
        training={"epochs": 2, "batch_size": 3},
        sweep={"axes": {"model.token_selection.keep_ratio": [0.1, 1.0]}},
    )
    found = estimate(plan(spec), measure=False)
    # Five and four images are a batch of three each; ungrouped they would be three batches.
    assert [one.steps for one in found] == [4, 4]
    assert len(opened) == 1


def test_the_pace_of_training_is_measured_with_its_spread_and_memory(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_train": 16})
    train_set, _ = build_datasets(spec.data)
    pace = measure_pace(spec, train_set)
    assert pace is not None
    assert 0 < pace.fastest <= pace.slowest < 60
    # This process has torch loaded, at least.
    least, most = pace.memory_mib
    assert 50 < least <= most < 100_000


def test_too_few_images_have_no_pace(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_train": 4})
    assert measure_pace(spec, build_datasets(spec.data)[0]) is None


def test_what_could_not_be_measured_is_null_in_json(
    tiny_experiment: Callable[..., ExperimentSpec],
) -> None:
    [found] = estimate(plan(tiny_experiment(data={"num_train": 4})), measure=True)
    content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (content["seconds_a_trial"], content["memory_mib"]) == (None, None)
    assert content["measured"] is False


@pytest.fixture
def known_pace(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Images take 1 to 2 s, those of an elastic training 3 to 4 s; which cells were measured."""
    measured: list[bool] = []

    def pace(spec: TrialSpec, train_set: DetectionDataset) -> Pace:
        measured.append(spec.training.elastic.enabled)
        return Pace(3.0, 4.0, (200.0, 210.0)) if measured[-1] else Pace(1.0, 2.0, (90.0, 100.0))

    monkeypatch.setattr(training_estimate, "measure_pace", pace)
    monkeypatch.setattr(training_estimate, "_MEASURING_SECONDS", 0.0)
    return measured


RATIO = "model.token_selection.keep_ratio"


def test_times_are_intervals_and_those_of_other_cells_follow_their_flops(
    tiny_experiment: Callable[..., ExperimentSpec], known_pace: list[bool]
) -> None:
    spec = tiny_experiment(
        data={"num_train": 8},
        training={"epochs": 3},
        sweep={
            "axes": {RATIO: [0.5, 1.0]},
            "cells": {"elastic": {"training.elastic.enabled": True}},
            "baseline": "keep_ratio=0.5",
        },
    )
    found = {one.cell.name: one for one in estimate(plan(spec), measure=True)}
    # Each kind is measured once: 8 images, 3 epochs. The time is over, so others are scaled.
    assert known_pace == [True, False]
    assert found["elastic"].seconds == (72.0, 96.0)
    assert found["elastic"].memory_mib == (200.0, 210.0)
    assert found["keep_ratio=0.5"].memory_mib == (90.0, 100.0)
    assert found["keep_ratio=0.5"].seconds == (24.0, 48.0)
    more = found["keep_ratio=1.0"].cost.total_macs / found["keep_ratio=0.5"].cost.total_macs
    assert found["keep_ratio=1.0"].seconds == pytest.approx((24 * more, 48 * more))
    # It was not measured: the range of those that were.
    assert found["keep_ratio=1.0"].memory_mib == (90.0, 100.0)
    assert not found["keep_ratio=1.0"].measured


@pytest.mark.parametrize(("hours", "fits"), [(None, True), (0.06, True), (0.05, False)])
def test_an_experiment_beyond_its_budget_is_refused(
    tiny_experiment: Callable[..., ExperimentSpec],
    known_pace: list[bool],
    hours: float | None,
    fits: bool,
) -> None:
    # Two of four samples are planned at first: 4 trials x 8 images x 3 epochs x 2 s = 192 s.
    spec = tiny_experiment(
        data={"num_train": 8},
        training={"epochs": 3},
        compute={"budget_hours": hours},
        sweep={
            "axes": {"training.optimizer.lr": [0.1, 0.2, 0.3, 0.4]},
            "search": {"kind": "optuna", "samples": 4, "batch": 2},
        },
    )
    refused = over_budget(spec, plan(spec), "retry it")
    if fits:
        assert refused is None
        assert bool(known_pace) == (hours is not None)
    else:
        assert refused is not None
        assert "may train for 0.027 to 0.053 hours, got a budget of 0.05;" in refused
        assert refused.endswith("raise it, or retry it")


def test_cells_that_cannot_be_timed_are_not_taken_to_cost_nothing(
    tiny_experiment: Callable[..., ExperimentSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pace(spec: TrialSpec, train_set: DetectionDataset) -> Pace | None:
        return None if spec.training.batch_size == 8 else Pace(1.0, 2.0, (90.0, 100.0))

    monkeypatch.setattr(training_estimate, "measure_pace", pace)
    spec = tiny_experiment(
        compute={"budget_hours": 100.0},
        sweep={
            "cells": {
                "large": {"training.batch_size": 8},
                "elastic": {"training.elastic.enabled": True, "training.batch_size": 8},
            }
        },
    )
    # That of the kind which was timed at another batch is known from there.
    assert over_budget(spec, plan(spec), "retry it") == (
        "compute.budget_hours: cannot time 1 of 3 cells (elastic), got too few images for two "
        "steps; take more images, a smaller batch, or retry it"
    )


def test_an_elastic_step_is_measured_with_both_of_its_passes(tiny_trial: MakeTrial) -> None:
    plain = tiny_trial(data={"num_train": 16})
    elastic = tiny_trial(data={"num_train": 16}, training={"elastic": {"enabled": True}})
    train_set, _ = build_datasets(plain.data)
    passes: list[float] = []
    original = TokenSelector.forward

    def counted(self: TokenSelector, *given: Any) -> Any:
        passes.append(self.keep_ratio)
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenSelector, "forward", counted)
        measure_pace(plain, train_set)
        assert set(passes) == {0.5}
        passes.clear()
        measure_pace(elastic, train_set)
    assert passes[:2] == pytest.approx([0.5, math.sqrt(0.05)])


def test_a_profile_splits_the_cost_and_names_the_machine(tiny_trial: MakeTrial) -> None:
    found = profile_model(tiny_trial(), repeats=3)
    for parts in found["gmacs"].values():
        total = sum(value for part, value in parts.items() if part != "total")
        assert abs(parts["total"] - total) < 1e-9
    assert "800 x 1333" in found["gmacs"]
    assert found["metrics"]["cost/latency_ms"] > 0
    assert found["metrics"]["cost/latency_p95_ms"] >= found["metrics"]["cost/latency_ms"]
    assert "3 passes, CPU, 1 threads" in found["facts"]["latency"]
