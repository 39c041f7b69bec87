"""Released checkpoints in, and what they evaluate to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from focus_lab.errors import WeightsError
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.model.weights import to_released
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.curve import evaluate_checkpoint
from focus_lab.training.detector import load_model
from focus_lab.training.release import convert_checkpoint

MakeTrial = Callable[..., TrialSpec]
RESNET = {"backbone": {"kind": "resnet", "depth": 18}}


@pytest.fixture
def released(tiny_trial: MakeTrial, tmp_path: Path) -> tuple[FocusDETR, Path]:
    torch.manual_seed(3)
    model = build_model(tiny_trial(model=RESNET).model, 3)
    path = tmp_path / "released.pth"
    torch.save({"model": to_released(model.state_dict()), "iteration": 7}, path)
    return model, path


def test_a_released_checkpoint_becomes_the_same_model(
    tiny_trial: MakeTrial, tmp_path: Path, released: tuple[FocusDETR, Path]
) -> None:
    model, source = released
    target = tmp_path / "folder" / "ours.pt"
    convert_checkpoint(source, tiny_trial(model=RESNET), target)
    loaded = load_model(checkpoints.load(target), torch.device("cpu"))
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    [row] = evaluate_checkpoint(target, [], [])
    assert row["tokens/keep_ratio"] == 0.5
    assert "coco/AP" in row


def test_another_number_of_classes_is_refused(
    tiny_trial: MakeTrial, tmp_path: Path, released: tuple[FocusDETR, Path]
) -> None:
    spec = tiny_trial(model=RESNET, data={"num_classes": 5})
    with pytest.raises(WeightsError, match=r"got 3 classes; data has 5, give the spec"):
        convert_checkpoint(released[1], spec, tmp_path / "ours.pt")
    assert not (tmp_path / "ours.pt").exists()


def test_another_model_is_refused(
    tiny_trial: MakeTrial, tmp_path: Path, released: tuple[FocusDETR, Path]
) -> None:
    spec = tiny_trial(model={**RESNET, "hidden_dim": 32})
    with pytest.raises(WeightsError, match="checkpoint: "):
        convert_checkpoint(released[1], spec, tmp_path / "ours.pt")
