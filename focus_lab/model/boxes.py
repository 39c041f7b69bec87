"""Boxes: two layouts, their overlaps, and the inverse sigmoid in which box heads work.

Shapes: `...` any leading axes, N and M numbers of boxes; a box is the last axis, of size 4.
`cxcywh` is centre and size, `xyxy` two corners. Units are free (shares of the image, or pixels),
but one call uses one unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The released denominators carry this term; two empty boxes then overlap by 0, not by 0/0.
_DENOMINATOR_EPS = 1e-6


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes given by centre and size, [..., 4] -> [..., 4].

    A negative size (a denoising query may have one) gives corners in the wrong order; nothing is
    repaired.
    """
    center, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return torch.cat((center - half, center + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centre and size of boxes given by two corners, [..., 4] -> [..., 4]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) * 0.5, high - low), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logit of x clamped to [0, 1], [...] -> [...].

    Args:
        x: probabilities or normalised coordinates.
        eps: least numerator and denominator (released: 1e-3); bounds the result to log(1 / eps).
    """
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=eps) / (1.0 - x).clamp(min=eps))


def aligned_generalized_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes one by one.

    Args:
        boxes_xyxy: [..., 4] with corners in order.
        others_xyxy: the same, or a shape that broadcasts with it.

    Returns:
        IoU in [0, 1] and generalised IoU in [-1, 1], both [...]. Two empty boxes have an IoU of 0.
    """
    size = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    other_size = others_xyxy[..., 2:] - others_xyxy[..., :2]
    inner_low = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    inner_high = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    outer_low = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    outer_high = torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])

    intersection = _area((inner_high - inner_low).clamp(min=0.0))
    union = _area(size) + _area(other_size) - intersection
    iou = intersection / (union + _DENOMINATOR_EPS)
    hull = _area(outer_high - outer_low)
    return iou, iou - (hull - union) / (hull + _DENOMINATOR_EPS)


def pairwise_generalized_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of every box with every other.

    Args:
        boxes_xyxy: [..., N, 4] with corners in order.
        others_xyxy: [..., M, 4]; leading axes broadcast.

    Returns:
        IoU in [0, 1] and generalised IoU in [-1, 1], both [..., N, M].
    """
    return aligned_generalized_iou(boxes_xyxy.unsqueeze(-2), others_xyxy.unsqueeze(-3))


def _area(sizes: Tensor) -> Tensor:
    """Product of width and height, [..., 2] -> [...]."""
    return sizes[..., 0] * sizes[..., 1]
