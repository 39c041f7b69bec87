import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.boxes import (
    aligned_generalized_iou,
    cxcywh_to_xyxy,
    inverse_sigmoid,
    pairwise_generalized_iou,
    xyxy_to_cxcywh,
)

unit = st.floats(0.0, 1.0, width=32)
size = st.floats(2**-10, 1.0, width=32)
boxes = st.lists(st.tuples(unit, unit, size, size), min_size=1, max_size=6).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


@given(boxes)
def test_corners_and_back_is_the_same_box(cxcywh):
    assert torch.allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(cxcywh)), cxcywh, atol=1e-12)


@given(boxes)
def test_converted_corners_are_in_order(cxcywh):
    xyxy = cxcywh_to_xyxy(cxcywh)
    assert (xyxy[:, 2:] >= xyxy[:, :2]).all()


@given(boxes, boxes)
def test_overlaps_stay_in_their_ranges_and_are_symmetric(first, second):
    first, second = cxcywh_to_xyxy(first), cxcywh_to_xyxy(second)
    iou, giou = pairwise_generalized_iou(first, second)
    assert iou.shape == giou.shape == (len(first), len(second))
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou >= -1) & (giou <= 1)).all()
    assert (giou <= iou + 1e-12).all()
    for there, back in zip((iou, giou), pairwise_generalized_iou(second, first), strict=True):
        assert torch.allclose(there, back.T)


@given(boxes)
def test_aligned_overlaps_are_the_diagonal_of_pairwise_ones(cxcywh):
    first, second = cxcywh_to_xyxy(cxcywh), cxcywh_to_xyxy(cxcywh.flip(0))
    for aligned, pairwise in zip(
        aligned_generalized_iou(first, second),
        pairwise_generalized_iou(first, second),
        strict=True,
    ):
        assert torch.equal(aligned, pairwise.diagonal())


def test_a_box_overlaps_itself_fully_but_for_the_released_epsilon():
    box = torch.tensor([0.0, 0.0, 100.0, 50.0])
    iou, giou = aligned_generalized_iou(box, box)
    assert iou.item() == pytest.approx(1.0)
    assert giou.item() == pytest.approx(1.0)


def test_known_generalised_overlap_of_separate_boxes():
    first = torch.tensor([[0.0, 0.0, 10.0, 10.0]], dtype=torch.float64)
    second = torch.tensor([[20.0, 0.0, 30.0, 10.0]], dtype=torch.float64)
    iou, giou = pairwise_generalized_iou(first, second)
    assert iou.item() == 0.0
    assert giou.item() == pytest.approx(-1 / 3, abs=1e-6)


def test_two_empty_boxes_have_finite_overlaps_and_gradients():
    point = torch.zeros(4, requires_grad=True)
    iou, giou = aligned_generalized_iou(point, torch.zeros(4))
    (iou + giou).backward()
    assert iou.item() == giou.item() == 0.0
    assert torch.isfinite(point.grad).all()


def test_overlaps_of_no_boxes_are_empty():
    iou, giou = pairwise_generalized_iou(torch.zeros(3, 4), torch.zeros(0, 4))
    assert iou.shape == giou.shape == (3, 0)


@given(st.lists(unit, min_size=1, max_size=8))
def test_inverse_sigmoid_undoes_sigmoid_up_to_its_clamp(values):
    x = torch.tensor(values, dtype=torch.float64)
    back = inverse_sigmoid(x, 1e-3).sigmoid()
    assert ((back - x).abs() <= 1e-3 + 1e-9).all()
    inner = (x >= 1e-3) & (x <= 1 - 1e-3)
    assert torch.allclose(back[inner], x[inner])


@pytest.mark.parametrize("value", [-5.0, 0.0, 1.0, 7.0])
def test_inverse_sigmoid_is_finite_outside_its_domain(value):
    assert inverse_sigmoid(torch.tensor(value), 1e-3).abs().item() == pytest.approx(6.9, abs=0.01)
