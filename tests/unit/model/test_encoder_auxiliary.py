"""Heads on the encoder's layers: what they predict from, and what they train."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from focus_lab.model.criterion import build_criterion
from focus_lab.model.encoder_auxiliary import EncoderAuxiliary, RefinedTokens
from focus_lab.model.focus_detr import build_model
from focus_lab.model.proposals import TokenBoxes
from focus_lab.specs.experiment import TrialSpec

CLASSES = 3


@pytest.fixture
def spec(tiny_trial: Callable[..., TrialSpec]) -> TrialSpec:
    return tiny_trial(
        model={
            "num_encoder_layers": 3,
            "encoder_auxiliary": True,
            "token_selection": {"keep_ratio": 0.5, "cascade": [1.0, 0.5, 1.0]},
        }
    )


def targets(*counts: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"labels": torch.arange(n) % CLASSES, "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in counts
    ]


def test_a_head_predicts_from_the_tokens_of_its_layer_and_their_own_boxes() -> None:
    torch.manual_seed(0)
    heads = EncoderAuxiliary([torch.nn.Linear(4, 2)], [torch.nn.Linear(4, 4)])
    boxes = torch.rand(1, 5, 4) * 0.8 + 0.1
    usable = torch.tensor([True, True, False, True, True]).view(1, 5, 1)
    own = TokenBoxes(torch.logit(boxes).masked_fill(~usable, float("inf")), usable)
    tokens = torch.randn(2, 3, 4)
    indices = torch.tensor([[4, 0, 2], [1, 3, 0]])
    updated = torch.tensor([[True, True, True], [True, False, False]]).unsqueeze(-1)
    last = RefinedTokens(tokens, None, None)
    [output] = heads([RefinedTokens(tokens, indices, updated), last], own)
    nothing = torch.tensor([[False, False, True], [False, True, True]])
    assert torch.equal(output["pred_logits"] == -1e4, nothing.unsqueeze(-1).expand(2, 3, 2))
    logits = heads.class_heads[0](tokens)
    assert torch.equal(output["pred_logits"][~nothing], logits[~nothing])
    moved = heads.box_heads[0](tokens) + torch.logit(boxes)[0][indices]
    assert torch.allclose(output["pred_boxes"][~nothing], moved.sigmoid()[~nothing])


def test_every_layer_but_the_last_has_losses_of_its_own_in_training_only(spec: TrialSpec) -> None:
    torch.manual_seed(0)
    model = build_model(spec.model, CLASSES)
    images, boxes = torch.randn(2, 3, 64, 64), targets(2, 0)
    output = model(images, targets=boxes)
    counts = output["token_selection"].counts
    assert [tuple(one["pred_logits"].shape) for one in output["enc_aux_outputs"]] == [
        (2, count, CLASSES) for count in counts[:-1]
    ]
    criterion = build_criterion(spec.model, CLASSES)
    losses = criterion(output, boxes, [(64, 64)] * 2)
    mine = {name for name in losses if "_enc_" in name}
    assert mine == {
        f"loss_{kind}_enc_{layer}" for kind in ("class", "bbox", "giou") for layer in (0, 1)
    }
    assert all(criterion.weight(n) == criterion.weight(n.rpartition("_enc_")[0]) for n in mine)
    criterion.total(losses).backward()
    assert model.encoder_auxiliary is not None
    assert all(p.grad.isfinite().all() for p in model.encoder_auxiliary.parameters())
    assert model.encoder_auxiliary.class_heads[1].weight.grad.abs().sum() > 0
    assert model.eval()(images)["enc_aux_outputs"] == []


def test_a_batch_without_boxes_has_finite_gradients_everywhere(spec: TrialSpec) -> None:
    model = build_model(spec.model, CLASSES)
    nothing = targets(0, 0)
    output = model(torch.randn(2, 3, 64, 64), [(64, 64), (40, 64)], targets=nothing)
    criterion = build_criterion(spec.model, CLASSES)
    criterion.total(criterion(output, nothing, [(64, 64), (40, 64)])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder_auxiliary is not None
    assert all(p.grad is not None for p in model.encoder_auxiliary.parameters())


def test_without_them_nothing_else_changes(spec: TrialSpec) -> None:
    torch.manual_seed(0)
    there = build_model(spec.model, CLASSES).eval()
    without = build_model(spec.model.model_copy(update={"encoder_auxiliary": False}), CLASSES)
    state = {k: v for k, v in there.state_dict().items() if "encoder_auxiliary" not in k}
    without.load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(there(images)["pred_logits"], without.eval()(images)["pred_logits"])
