"""Distillation: what is compared, slot by slot, and what it is divided by."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.distillation import distillation_loss
from focus_lab.model.output import DenoisingMeta, ModelOutput


def output(logits: torch.Tensor, boxes: torch.Tensor, groups: int, aux: int = 0) -> ModelOutput:
    layer = {"pred_logits": logits, "pred_boxes": boxes}
    slots = logits.shape[1]
    content: dict[str, Any] = {
        **layer,
        "denoising": {**layer, "aux_outputs": [layer] * aux},
        "denoising_meta": DenoisingMeta(groups, slots // groups, slots),
    }
    return cast(ModelOutput, content)


def test_one_slot_by_hand() -> None:
    # One image with one box, one group: a positive and a negative slot, two classes.
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]])
    teacher = output(torch.zeros(1, 2, 2), boxes, groups=1)
    given_logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    moved = boxes.clone()
    moved[0, 1, 0] += 0.3
    student = output(given_logits, moved, groups=1)
    # Bernoulli 1/2 against 3/4: ln((1/2)/(3/4))/2 + ln((1/2)/(1/4))/2 = ln(4/3)/2; a box 0.3 off.
    expected = (math.log(4 / 3) / 2 + 0.3) / 2
    assert float(distillation_loss(teacher, student, [1], 1)) == pytest.approx(expected, rel=1e-6)


def test_decoder_layers_add_up_and_parts_of_a_batch_do_too() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 2, 3, 8, 5, generator=generator).unbind(0)
    boxes, moved = torch.rand(2, 2, 3, 8, 4, generator=generator).unbind(0)
    whole = distillation_loss(
        output(logits[0], boxes[0], 2), output(other[0], moved[0], 2), [2, 0, 1], 3
    )
    twice = distillation_loss(
        output(logits[0], boxes[0], 2, aux=1), output(other[0], moved[0], 2, aux=1), [2, 0, 1], 3
    )
    torch.testing.assert_close(twice, 2 * whole)
    parts = [
        distillation_loss(
            output(logits[0, i : i + 1], boxes[0, i : i + 1], 2),
            output(other[0, i : i + 1], moved[0, i : i + 1], 2),
            [count],
            3,
        )
        for i, count in enumerate([2, 0, 1])
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_slots_without_a_box_do_not_count() -> None:
    logits, boxes = torch.zeros(1, 4, 2), torch.zeros(1, 4, 4)
    changed = logits.clone()
    # Two slots a half: the image has one box, so the second slot of each half is empty.
    changed[0, [1, 3]] = 9.0
    loss = distillation_loss(output(logits, boxes, 1), output(changed, boxes, 1), [1], 1)
    assert float(loss) == 0.0


def test_only_the_student_learns() -> None:
    teacher_logits = torch.randn(1, 2, 3, requires_grad=True)
    student_logits = torch.randn(1, 2, 3, requires_grad=True)
    boxes = torch.rand(1, 2, 4)
    loss = distillation_loss(
        output(teacher_logits, boxes, 1), output(student_logits, boxes, 1), [1], 1
    )
    loss.backward()
    assert teacher_logits.grad is None
    assert student_logits.grad is not None
    # The gradient of the divergence of Bernoullis is the difference of their probabilities.
    wanted = (student_logits.detach().sigmoid() - teacher_logits.detach().sigmoid()) / 2
    torch.testing.assert_close(student_logits.grad, wanted)


@given(st.integers(0, 2**31), st.floats(0.1, 30))
def test_it_is_never_negative_and_zero_between_equals(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 4, 3, generator=generator)
    other = scale * torch.randn(2, 4, 3, generator=generator)
    boxes = torch.rand(2, 4, 4, generator=generator)
    same = distillation_loss(output(logits, boxes, 2), output(logits, boxes, 2), [1, 1], 2)
    apart = distillation_loss(output(logits, boxes, 2), output(other, boxes, 2), [1, 1], 2)
    assert float(same) == 0.0
    assert float(apart) >= -1e-6


def test_without_denoising_queries_there_is_nothing_to_compare() -> None:
    empty: Any = {"pred_logits": torch.zeros(1, 2, 3), "denoising": None, "denoising_meta": None}
    assert float(distillation_loss(empty, empty, [0], 0)) == 0.0
