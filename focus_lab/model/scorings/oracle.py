"""Scores by the ground truth, in evaluation too: the upper bound of all scorings.

Shape legend: B images, M boxes of an image (padded), N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from focus_lab.errors import SpecError
from focus_lab.model.feature_levels import host_tensor
from focus_lab.model.foreground_targets import ForegroundRule
from focus_lab.model.padded_targets import PaddedTargets, pad_targets
from focus_lab.model.token_selection import TokenSelector, TokensToScore


class OracleSelector(TokenSelector):
    """Foreground tokens first; within and after them those nearer to the centre of a box."""

    learns_foreground = False

    def __init__(
        self,
        rule: ForegroundRule,
        keep_ratio: float,
        cascade: Sequence[float],
        level_keep_ratios: Sequence[float] | None = None,
    ) -> None:
        """Selector by the labels of `rule`; ratios as `TokenSelector`."""
        super().__init__(keep_ratio, cascade, level_keep_ratios)
        self.rule = rule

    def score(self, given: TokensToScore) -> Tensor:
        """In [0, 2], [B, N]: 1 for foreground, and nearness in [0, 1]; 0 without any box.

        Raises:
            SpecError: the boxes are not known.
        """
        if given.targets is None:
            raise SpecError(
                "model.token_selection.scoring: `oracle` looks at the boxes of the images, got "
                "images without; it is a bound and no detector, so use another scoring for these"
            )
        targets = pad_targets(given.targets)
        labels = self.rule.labels(targets, given.sizes, given.levels.shapes, given.strides)
        return (labels > 0).float() + _nearness(targets, given)


def _nearness(targets: PaddedTargets, given: TokensToScore) -> Tensor:
    """1 / (1 + distance) to the nearest centre, [B, N], distances in half sides of the box.

    The distance is the larger of the two axes': 1 on the sides of a box.
    """
    centers = given.levels.centers().to(targets.boxes)  # [B', N, 2], shares of the valid image
    if targets.width == 0:
        return centers.new_zeros(len(targets.counts), centers.shape[1])
    middles, half_sides = targets.boxes[:, :, None, :2], targets.boxes[:, :, None, 2:] / 2
    away = (centers[:, None] - middles).abs() / half_sides.clamp(min=1e-6)  # [B, M, N, 2]
    nearness = 1 / (1 + away.amax(-1))  # [B, M, N]
    boxes = torch.arange(targets.width, device=nearness.device)
    counts = host_tensor(targets.counts, torch.int64, nearness.device)[:, None]
    is_box = (boxes < counts)[:, :, None]  # [B, M, 1]
    return nearness.masked_fill(~is_box, 0.0).amax(1)
