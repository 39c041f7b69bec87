"""Which tokens count as foreground while the scorer learns (Sec. 3.2).

A token is foreground for a box when it lies strictly inside and its farthest side distance falls
into the size range of its level. As released: side distances and adjacent ranges, where the paper's
text has centre distances and overlapping ranges.

Shape legend: B images, M boxes of an image (padded), N tokens of all levels, h and w of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.output import Target
from focus_lab.model.padded_targets import PaddedTargets, pad_targets

if TYPE_CHECKING:
    from focus_lab.specs.model import ModelSpec

_FIRST_LIMIT = 64.0
_OPEN_LIMIT = 999_999.0


def default_size_ranges(num_levels: int) -> tuple[tuple[float, float], ...]:
    """(low, high] limits in pixels, one pair a level: doubling from 64, open at both ends.

    Four levels give the released (-1, 64], (64, 128], (128, 256], (256, 999999].
    """
    limits = [-1.0, *(_FIRST_LIMIT * 2**level for level in range(num_levels - 1)), _OPEN_LIMIT]
    return tuple(pairwise(limits))


@dataclass(frozen=True)
class ForegroundRule:
    """What makes a token foreground; see `foreground_labels`."""

    size_ranges: tuple[tuple[float, float], ...]
    """(low, high] limits in pixels, one pair a level."""
    center_radius: float | None
    """Largest distance to the box's centre in strides; None for any."""

    def labels(
        self,
        targets: Sequence[Target] | PaddedTargets,
        sizes: Sequence[tuple[int, int]],
        level_shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
    ) -> Tensor:
        """Labels [B, N] of a batch, as `foreground_labels`."""
        return foreground_labels(
            targets, sizes, level_shapes, strides, self.size_ranges, self.center_radius
        )

    def on_any_level(self) -> ForegroundRule:
        """The rule without size ranges: objects of all sizes are foreground on all levels."""
        return replace(self, size_ranges=((-1.0, _OPEN_LIMIT),) * len(self.size_ranges))


def foreground_rule(spec: ModelSpec) -> ForegroundRule:
    """The rule that a model's spec describes."""
    targets = spec.foreground_targets
    return ForegroundRule(
        targets.size_ranges or default_size_ranges(spec.num_feature_levels), targets.center_radius
    )


@torch.no_grad()
def foreground_labels(
    targets: Sequence[Target] | PaddedTargets,
    sizes: Sequence[tuple[int, int]],
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size_ranges: Sequence[tuple[float, float]],
    center_radius: float | None = None,
) -> Tensor:
    """Label every token of a batch.

    Args:
        targets: boxes of each image; a batch without any box gets no foreground.
        sizes: valid (height, width) of each image in pixels, the unit of its normalised boxes.
        level_shapes: (height, width) of each feature level, fine to coarse.
        strides: pixels between tokens of each level; a token sits at index * stride + stride // 2.
        size_ranges: (low, high] limits of the farthest side distance in pixels, one pair a level.
        center_radius: when given, the token must also lie closer than radius * stride to the box's
            centre, in x and in y.

    Returns:
        bool [B, N], levels in order, row-major. Tokens of the padding are never foreground.
    """
    padded = targets if isinstance(targets, PaddedTargets) else pad_targets(targets)
    boxes = padded.boxes  # [B, M, 4]
    pixels = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    # Padding boxes become a point at the origin, which has no inside.
    boxes_xyxy = (cxcywh_to_xyxy(boxes) * pixels[:, None]).unsqueeze(-1)  # [B, M, 4, 1]

    labels = []
    for (height, width), stride, limits in zip(level_shapes, strides, size_ranges, strict=True):
        radius = None if center_radius is None else center_radius * stride
        x_fits, x_large = _fits(
            boxes_xyxy[:, :, 0], boxes_xyxy[:, :, 2], width, stride, limits, radius
        )
        y_fits, y_large = _fits(
            boxes_xyxy[:, :, 1], boxes_xyxy[:, :, 3], height, stride, limits, radius
        )
        # The rule is separable: both axes fit and at least one is large. Any box will do, so the
        # label is a boolean matrix product over boxes, and no tensor of boxes x tokens is ever
        # built.
        rows = torch.cat((y_fits, y_fits & y_large), dim=1).float()  # [B, 2M, h]
        columns = torch.cat((x_fits & x_large, x_fits), dim=1).float()  # [B, 2M, w]
        labels.append(torch.bmm(rows.transpose(1, 2), columns).flatten(1) > 0)  # [B, h*w]
    return torch.cat(labels, dim=1)


def _fits(
    low: Tensor,
    high: Tensor,
    count: int,
    stride: int,
    limits: tuple[float, float],
    radius: float | None,
) -> tuple[Tensor, Tensor]:
    """Compare the token positions of one axis with the boxes' extents along it.

    Args:
        low: [B, M, 1] lower side of each box in pixels.
        high: [B, M, 1] upper side.
        count: number of token positions along the axis.
        stride: pixels between them.
        limits: (low, high] limits of the farther side distance.
        radius: largest distance to the box's centre in pixels (exclusive), or None.

    Returns:
        Two bool [B, M, count]: whether the position is inside and not too far from either side, and
        whether it is far enough from one of them.
    """
    position = torch.arange(count, device=low.device, dtype=low.dtype) * stride + stride // 2
    to_low, to_high = position - low, high - position
    farther = torch.maximum(to_low, to_high)
    fits = (torch.minimum(to_low, to_high) > 0) & (farther <= limits[1])
    if radius is not None:
        fits &= (position - (low + high) * 0.5).abs() < radius
    return fits, farther > limits[0]
