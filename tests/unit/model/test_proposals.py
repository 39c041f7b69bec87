"""Token boxes and the choice of the decoder's queries."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.feed_forward import Perceptron
from focus_lab.model.proposals import Proposals
from focus_lab.model.tokens import take_tokens

MAPS = [torch.zeros(2, 1, 6, 8), torch.zeros(2, 1, 3, 4)]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return Proposals(16, 10, 0.05, 0.01), torch.nn.Linear(16, 3), Perceptron((16, 16, 4))


def test_boxes_double_with_each_level(parts):
    levels = FeatureLevels.measure(MAPS, (48, 64), None)
    boxes = parts[0].boxes(levels, None).logits.sigmoid()
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.5 / 8, 0.5 / 6, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 48], torch.tensor([0.5 / 4, 0.5 / 3, 0.1, 0.1]))


def test_padding_and_border_tokens_are_not_usable():
    levels = FeatureLevels.measure(MAPS, (48, 64), [(48, 64), (48, 32)])
    boxes = Proposals(16, 10, 0.05, 0.2).boxes(levels, levels.padding_mask())
    usable = boxes.usable[:, :48, 0].view(2, 6, 8)
    assert not usable.any()  # 0.05 is outside (0.2, 0.8)
    boxes = Proposals(16, 10, 0.3, 0.2).boxes(levels, levels.padding_mask())
    usable = boxes.usable[:, :48, 0].view(2, 6, 8)
    assert usable[0].any(0).tolist() == [False, False, True, True, True, True, False, False]
    assert usable[1].any(0).tolist() == [False, True, True, False, False, False, False, False]
    assert boxes.logits.isposinf().all(-1).equal(~boxes.usable[..., 0])


def test_tokens_that_are_not_usable_become_one_constant(parts):
    levels = FeatureLevels.measure(MAPS, (48, 64), [(48, 64), (48, 32)])
    usable = parts[0].boxes(levels, levels.padding_mask()).usable
    projected = parts[0].project(torch.randn(2, 60, 16), usable)
    blank = projected[~usable[..., 0]]
    assert torch.equal(blank, blank[:1].expand_as(blank))


def test_chosen_tokens_fall_in_class_score_and_equal_a_projection_of_all(parts):
    proposals, class_head, box_head = parts
    levels = FeatureLevels.measure(MAPS, (48, 64), None)
    boxes = proposals.boxes(levels, None)
    memory = torch.randn(2, 60, 16, requires_grad=True)
    start = proposals(memory, boxes, class_head, box_head)
    everything = proposals.project(memory, boxes.usable)
    logits = take_tokens(class_head(everything), start.indices)
    torch.testing.assert_close(start.pred_logits, logits)
    torch.testing.assert_close(
        start.pred_boxes,
        take_tokens((box_head(everything) + boxes.logits).sigmoid(), start.indices),
    )
    best = start.pred_logits.amax(-1)
    assert (best.diff(dim=1) <= 1e-6).all()
    ours = torch.autograd.grad(start.pred_logits.square().sum(), memory)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(logits.square().sum(), memory)[0])


def test_fewer_tokens_than_queries_give_fewer_queries(parts):
    levels = FeatureLevels.measure([torch.zeros(1, 1, 2, 2)], (16, 16), None)
    start = parts[0](torch.randn(1, 4, 16), parts[0].boxes(levels, None), parts[1], parts[2])
    assert start.indices.shape == (1, 4)


def test_boxes_of_tokens_that_are_not_usable_have_finite_gradients(parts):
    proposals, class_head, box_head = parts
    levels = FeatureLevels.measure([torch.zeros(1, 1, 2, 2)], (16, 16), [(8, 16)])
    memory = torch.randn(1, 4, 16, requires_grad=True)
    start = proposals(memory, proposals.boxes(levels, levels.padding_mask()), class_head, box_head)
    start.pred_boxes.sum().backward()
    assert memory.grad.isfinite().all()
