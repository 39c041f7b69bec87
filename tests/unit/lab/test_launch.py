"""What is looked at before anything is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from focus_lab.data.export import write_shapes
from focus_lab.errors import DataError, WeightsError
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.executor import InProcessExecutor
from focus_lab.lab.lab import store_url
from focus_lab.lab.launch import check_inputs, launch
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.folder import MANIFEST, make_folder

MakeExperiment = Callable[..., ExperimentSpec]


def test_usable_inputs_pass(tiny_experiment: MakeExperiment) -> None:
    check_inputs(plan(tiny_experiment()))


def test_missing_data_is_an_error_and_leaves_no_file(
    tiny_experiment: MakeExperiment, tmp_path: Path
) -> None:
    data = {"kind": "coco", "root": str(tmp_path / "nowhere")}
    spec = tiny_experiment(data=data)
    home = tmp_path / "runs"
    with (
        pytest.raises(DataError, match="nowhere"),
        launch(spec, plan(spec), home, executor=InProcessExecutor()),
    ):
        pass
    assert not home.exists()


def test_weights_of_one_cell_that_do_not_fit_are_an_error(
    tiny_experiment: MakeExperiment, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    backbone = {"kind": "resnet", "depth": 18, "weights": str(path)}
    spec = tiny_experiment(sweep={"cells": {"pretrained": {"model.backbone": backbone}}})
    with pytest.raises(WeightsError, match=r"model\.backbone\.weights: "):
        check_inputs(plan(spec))


@pytest.mark.slow
def test_data_that_changed_under_a_trial_that_is_done_is_refused(
    tiny_experiment: MakeExperiment, tmp_path: Path
) -> None:
    scenes = tiny_experiment().data
    write_shapes(scenes, tmp_path / "data")
    split = {"images": "train", "annotations": "annotations/instances_train.json"}
    data = {"kind": "coco", "root": str(tmp_path / "data"), "train": split, "val": split}
    spec = tiny_experiment(data=data)
    made = plan(spec)
    store = Store(store_url(tmp_path))
    experiment = store.record(spec, made, tmp_path / "tiny")
    [trial] = store.trials(experiment.id)
    store.move(store.move(trial, TrialState.RUNNING), TrialState.SUCCEEDED)
    store.close()
    folder = make_folder(trial_folder(experiment, trial))
    (folder / MANIFEST).write_text(json.dumps({"inputs": check_inputs(made)["baseline"]}))
    with launch(spec, made, tmp_path, executor=InProcessExecutor()):
        pass
    annotations = tmp_path / "data" / split["annotations"]
    annotations.write_text(annotations.read_text() + " ")
    with (
        pytest.raises(DataError, match=r"data\.train: has changed .*; restore it, or give"),
        launch(spec, made, tmp_path, executor=InProcessExecutor()),
    ):
        pass
