"""Golden D: token labels equal, foreground loss and its gradient close."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focus_lab.model.criterion import build_criterion
from focus_lab.model.foreground_targets import default_size_ranges, foreground_labels
from focus_lab.specs.model import ModelSpec

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "manifest_losses.json").read_text())["D_foreground_supervision"]
CASES = {
    name: case for name, case in GOLDEN["config"]["cases"].items() if "reference_raises" not in case
}


@pytest.fixture(scope="module")
def tensors():
    return load_file(FIXTURES / "D_foreground_supervision.safetensors")


def labels_of(case, name, tensors, dtype=torch.float32):
    targets = [
        {
            "boxes": tensors[f"{name}.boxes{image}"].to(dtype),
            "labels": torch.zeros(count, dtype=torch.int64),
        }
        for image, count in enumerate(case["box_counts"])
    ]
    config = GOLDEN["config"]
    limits = [tuple(limit) for limit in config["limit_ranges"]]
    return foreground_labels(
        targets, case["sizes"], case["level_shapes"], config["strides"], limits
    )


def test_default_size_ranges_are_the_released_ones():
    released = tuple(tuple(map(float, limits)) for limits in GOLDEN["config"]["limit_ranges"])
    assert default_size_ranges(4) == released


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", CASES)
def test_token_labels_equal_the_release(name, dtype, tensors):
    labels = labels_of(CASES[name], name, tensors, dtype)
    assert torch.equal(labels, tensors[f"{name}.targets"].bool())


@pytest.mark.parametrize("name", CASES)
def test_foreground_loss_and_its_gradient_are_the_released_ones(name, tensors):
    criterion = build_criterion(ModelSpec(), num_classes=1)
    labels = labels_of(CASES[name], name, tensors)
    golden = GOLDEN["scalars"][f"{name}.select_loss"]

    logits = tensors[f"{name}.scores"].clone().requires_grad_()
    loss = criterion.foreground_loss(logits.squeeze(-1), labels)
    loss.backward()
    assert loss.item() == pytest.approx(golden["f32"], rel=1e-5)
    assert torch.allclose(logits.grad, tensors[f"{name}.grad_scores"], rtol=1e-5, atol=1e-5)

    exact = criterion.foreground_loss(tensors[f"{name}.scores"].double().squeeze(-1), labels)
    assert exact.item() == pytest.approx(golden["f64"], rel=1e-9)


def test_the_case_that_the_release_cannot_do_has_no_foreground():
    case = GOLDEN["config"]["cases"]["all_empty"]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()} for _ in range(2)]
    labels = foreground_labels(
        targets, case["sizes"], case["level_shapes"], (8, 16, 32, 64), default_size_ranges(4)
    )
    assert labels.shape == (2, sum(height * width for height, width in case["level_shapes"]))
    assert not labels.any()
