"""What a trial would cost, and the profile of a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.specs.data import DataSpec
from focus_lab.specs.experiment import ExperimentSpec, TrialSpec
from focus_lab.specs.plan import plan
from focus_lab.training import estimate as training_estimate
from focus_lab.training.estimate import estimate, seconds_per_image
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


def test_the_pace_of_training_is_measured(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_train": 16})
    train_set, _ = build_datasets(spec.data)
    assert 0 < seconds_per_image(spec, train_set) < 60


def test_too_few_images_have_no_pace(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_train": 4})
    assert math.isnan(seconds_per_image(spec, build_datasets(spec.data)[0]))


def test_a_pace_that_could_not_be_measured_is_null_in_json(
    tiny_experiment: Callable[..., ExperimentSpec],
) -> None:
    [found] = estimate(plan(tiny_experiment(data={"num_train": 4})), measure=True)
    assert found.seconds is not None
    assert math.isnan(found.seconds)
    assert found.as_dict()["seconds_a_trial"] is None


def test_a_profile_splits_the_cost_and_names_the_machine(tiny_trial: MakeTrial) -> None:
    found = profile_model(tiny_trial(), repeats=3)
    for parts in found["gmacs"].values():
        total = sum(value for part, value in parts.items() if part != "total")
        assert abs(parts["total"] - total) < 1e-9
    assert "800 x 1333" in found["gmacs"]
    assert found["metrics"]["cost/latency_ms"] > 0
    assert found["metrics"]["cost/latency_p95_ms"] >= found["metrics"]["cost/latency_ms"]
    assert "3 passes, CPU, 1 threads" in found["facts"]["latency"]
