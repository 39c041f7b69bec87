"""What is looked at before anything is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from focus_lab.errors import DataError, WeightsError
from focus_lab.lab.launch import check_inputs, launch
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

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
        launch(spec, plan(spec), home, executor="in-process"),
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
