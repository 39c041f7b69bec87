"""Which tokens count as foreground while the scorer learns (Sec. 3.2).

A token is foreground for a box when it lies strictly inside and its distance falls into the size
range of its level. Released code, paper and Salience-DETR differ in the distance and the ranges:

- `side`, as released: the distance to the farthest side, ranges side by side (FCOS).
- `paper`, Sec. 3.2: the larger of the distances to the box's centre in x and y; each range
  overlaps half of the one before. The text does not print the ranges; these have the released ends.
- `soft`: as `side`, but the label of a foreground token is 1 - |offset| / 2, where the offset from
  the centre is counted in half sides of the box: 1 at the centre, 1/2 in the middle of a side.

Shape legend: B images, M boxes of an image (padded), N tokens of all levels, h and w of one level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.output import Target
from focus_lab.model.padded_targets import PaddedTargets, pad_targets

if TYPE_CHECKING:
    from focus_lab.specs.model import ModelSpec

LabelKind: TypeAlias = Literal["side", "paper", "soft"]

_RELEASED_LIMIT = 64.0
"""Pixels: the largest distance of the finest level."""
_OPEN_LIMIT = 999_999.0


def default_size_ranges(
    num_levels: int, finest_limit: float = _RELEASED_LIMIT
) -> tuple[tuple[float, float], ...]:
    """(low, high] limits in pixels, one pair a level: doubling from the finest, open at both ends.

    Four levels give the released (-1, 64], (64, 128], (128, 256], (256, 999999].
    """
    limits = [-1.0, *(finest_limit * 2**level for level in range(num_levels - 1)), _OPEN_LIMIT]
    return tuple(pairwise(limits))


def overlapping_size_ranges(
    num_levels: int, finest_limit: float = _RELEASED_LIMIT
) -> tuple[tuple[float, float], ...]:
    """As `default_size_ranges`, each beginning in the middle of the one before.

    Four levels give (-1, 64], (32, 128], (80, 256], (168, 999999].
    """
    ranges: list[tuple[float, float]] = []
    for low, high in default_size_ranges(num_levels, finest_limit):
        if ranges:
            low = (max(0.0, ranges[-1][0]) + ranges[-1][1]) / 2
        ranges.append((low, high))
    return tuple(ranges)


@dataclass(frozen=True)
class ForegroundRule:
    """What makes a token foreground; see `foreground_labels`."""

    kind: LabelKind
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
            targets, sizes, level_shapes, strides, self.size_ranges, self.center_radius, self.kind
        )

    def on_any_level(self) -> ForegroundRule:
        """The rule without size ranges: objects of all sizes are foreground on all levels."""
        return replace(self, size_ranges=((-1.0, _OPEN_LIMIT),) * len(self.size_ranges))


def foreground_rule(spec: ModelSpec) -> ForegroundRule:
    """The rule that a model's spec describes."""
    targets = spec.foreground_targets
    ranges = overlapping_size_ranges if targets.kind == "paper" else default_size_ranges
    return ForegroundRule(
        targets.kind,
        targets.size_ranges or ranges(spec.num_feature_levels, targets.finest_limit),
        targets.center_radius,
    )


def one_level_only(spec: ModelSpec, longer_sides: tuple[float, float, float]) -> str | None:
    """A warning, when objects are so small that only the finest level has foreground.

    None for scorers that do not learn by size ranges.

    Args:
        spec: the model.
        longer_sides: of the boxes in pixels: median, 90th percentile, largest.
    """
    median, _, largest = longer_sides
    rule = foreground_rule(spec)
    (_, limit), *coarser = rule.size_ranges
    farthest = largest / 2 if rule.kind == "paper" else largest
    learns = spec.token_selection.scoring.kind == "focus"
    if not learns or not coarser or farthest > coarser[0][0] or not largest:
        return None
    return (
        f"model.foreground_targets: no box is longer than {largest:.0f} px, so that the scorer "
        f"learns of foreground on the finest level only, which takes up to {limit:g} px; "
        f"finest_limit: {median:.0f} would share it out"
    )


@torch.no_grad()
def foreground_labels(
    targets: Sequence[Target] | PaddedTargets,
    sizes: Sequence[tuple[int, int]],
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size_ranges: Sequence[tuple[float, float]],
    center_radius: float | None = None,
    kind: LabelKind = "side",
) -> Tensor:
    """Label every token of a batch.

    Args:
        targets: boxes of each image; a batch without any box gets no foreground.
        sizes: valid (height, width) of each image in pixels, the unit of its normalised boxes.
        level_shapes: (height, width) of each feature level, fine to coarse.
        strides: pixels between tokens of each level; a token sits at index * stride + stride // 2.
        size_ranges: (low, high] limits of the distance in pixels, one pair a level.
        center_radius: when given, the token must also lie closer than radius * stride to the box's
            centre, in x and in y.
        kind: of distance and label, see above.

    Returns:
        bool [B, N], levels in order, row-major; with `soft` the labels in the boxes' dtype, 0 for
        background and of several boxes the largest. Tokens of the padding are never foreground.
    """
    padded = targets if isinstance(targets, PaddedTargets) else pad_targets(targets)
    boxes = padded.boxes  # [B, M, 4]
    pixels = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    # Padding boxes become a point at the origin, which has no inside.
    boxes_xyxy = (cxcywh_to_xyxy(boxes) * pixels[:, None]).unsqueeze(-1)  # [B, M, 4, 1]

    labels = []
    for (height, width), stride, limits in zip(level_shapes, strides, size_ranges, strict=True):
        radius = None if center_radius is None else center_radius * stride
        to_centre = kind == "paper"
        x_low, x_high = boxes_xyxy[:, :, 0], boxes_xyxy[:, :, 2]
        y_low, y_high = boxes_xyxy[:, :, 1], boxes_xyxy[:, :, 3]
        x_fits, x_large = _fits(x_low, x_high, width, stride, limits, radius, to_centre)
        y_fits, y_large = _fits(y_low, y_high, height, stride, limits, radius, to_centre)
        if kind == "soft":
            fits = y_fits[..., :, None] & x_fits[..., None, :]  # [B, M, h, w]
            fits &= y_large[..., :, None] | x_large[..., None, :]
            labels.append(
                _soft_labels(
                    fits,
                    _offset(x_low, x_high, width, stride)[..., None, :],
                    _offset(y_low, y_high, height, stride)[..., :, None],
                ).flatten(1)
            )
            continue
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
    to_centre: bool,
) -> tuple[Tensor, Tensor]:
    """Compare the token positions of one axis with the boxes' extents along it.

    Args:
        low: [B, M, 1] lower side of each box in pixels.
        high: [B, M, 1] upper side.
        count: number of token positions along the axis.
        stride: pixels between them.
        limits: (low, high] limits of the distance.
        radius: largest distance to the box's centre in pixels (exclusive), or None.
        to_centre: whether the distance is that to the box's centre, not that to the farther side.

    Returns:
        Two bool [B, M, count]: whether the position is inside and its distance not too large, and
        whether it is large enough.
    """
    position = _positions(low, count, stride)
    to_low, to_high = position - low, high - position
    distance = (to_low - to_high).abs() / 2 if to_centre else torch.maximum(to_low, to_high)
    fits = (torch.minimum(to_low, to_high) > 0) & (distance <= limits[1])
    if radius is not None:
        fits &= (position - (low + high) * 0.5).abs() < radius
    return fits, distance > limits[0]


def _positions(like: Tensor, count: int, stride: int) -> Tensor:
    """Token positions along an axis in pixels, [count]."""
    return torch.arange(count, device=like.device, dtype=like.dtype) * stride + stride // 2


def _offset(low: Tensor, high: Tensor, count: int, stride: int) -> Tensor:
    """Offsets of the positions from the boxes' middles in half sides, [B, M, count]."""
    half = (high - low) / 2
    return (_positions(low, count, stride) - (low + high) / 2) / half.clamp(min=1e-6)


def _soft_labels(fits: Tensor, x_offset: Tensor, y_offset: Tensor) -> Tensor:
    """Largest 1 - |offset| / 2 over boxes, 0 where none fits.

    Args:
        fits: bool [B, M, h, w].
        x_offset: [B, M, 1, w].
        y_offset: [B, M, h, 1].

    Returns:
        [B, h, w].
    """
    if fits.shape[1] == 0:
        return x_offset.new_zeros(fits.shape[0], *fits.shape[2:])
    label = 1 - torch.hypot(x_offset, y_offset) / 2
    return label.masked_fill(~fits, 0.0).amax(1)
