"""Distillation: a pass with few tokens learns to repair denoising queries as one with many does.

Shape legend: B images, P denoising slots, C classes, M slots of half a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from focus_lab.model.feature_levels import host_tensor
from focus_lab.model.output import LayerOutput, ModelOutput
from focus_lab.model.precision import at_least_float32


def distillation_loss(
    teacher: ModelOutput, student: ModelOutput, counts: Sequence[int], num_boxes: int
) -> Tensor:
    """How far the student's repaired boxes are from the teacher's, a scalar >= 0.

    Of every slot that holds a noised box, positive or negative: the Kullback-Leibler divergence of
    the class probabilities (independent of each other, as the model's are) summed over classes,
    plus the L1 distance of the boxes. Summed over decoder layers, mean over the slots. Decoder
    queries are not compared: the two passes choose different ones, while a denoising slot is the
    same question to both.

    Args:
        teacher: output of the pass with more tokens; it gets no gradient.
        student: output of the other pass, with the same noise.
        counts: boxes of each image.
        num_boxes: boxes of the whole batch, of which these images may be a part.

    Returns:
        0 without denoising queries.
    """
    theirs, ours, meta = teacher["denoising"], student["denoising"], student["denoising_meta"]
    if theirs is None or ours is None or meta is None:
        return student["pred_logits"].new_zeros(())
    half = meta.single_padding // 2
    slots = torch.arange(meta.padded_size, device=ours["pred_logits"].device) % half  # [P]
    used = slots < host_tensor(counts, torch.int64, slots.device)[:, None]  # [B, P]
    layers: list[tuple[LayerOutput, LayerOutput]] = [
        (theirs, ours),
        *zip(theirs["aux_outputs"], ours["aux_outputs"], strict=True),
    ]
    total = sum(_distance(one, other) for one, other in layers)  # [B, P]
    assert isinstance(total, Tensor)
    return (total * used).sum() / max(1, 2 * meta.groups * num_boxes)


def _distance(teacher: LayerOutput, student: LayerOutput) -> Tensor:
    """Of each slot, [B, P]."""
    wanted = at_least_float32(teacher["pred_logits"]).detach()  # [B, P, C]
    given = at_least_float32(student["pred_logits"])
    probability = wanted.sigmoid()
    divergence = probability * (logsigmoid(wanted) - logsigmoid(given)) + (1 - probability) * (
        logsigmoid(-wanted) - logsigmoid(-given)
    )
    boxes = at_least_float32(teacher["pred_boxes"]).detach()
    moved = (boxes - at_least_float32(student["pred_boxes"])).abs()  # [B, P, 4]
    return divergence.sum(dim=-1) + moved.sum(dim=-1)
