"""Objectness: is there any object at this token, whatever its size.

A head of its own on each token alone. Its labels know no level (see `foreground_targets`), so it
learns where objects are and not on which level they belong. In the spirit of Sparse DETR's
objectness score, whose head the released code does not contain.

Shape legend: B images, N tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from focus_lab.model.feed_forward import Perceptron
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.token_selection import TokenSelector, TokensToScore


class ObjectnessSelector(TokenSelector):
    """Objectness logits by a perceptron of one hidden layer."""

    def __init__(
        self,
        hidden_dim: int,
        keep_ratio: float,
        cascade: Sequence[float],
        level_keep_ratios: Sequence[float] | None = None,
    ) -> None:
        """Selector for tokens of width `hidden_dim`; ratios as `TokenSelector`."""
        super().__init__(keep_ratio, cascade, level_keep_ratios)
        self.head = Perceptron((hidden_dim, hidden_dim, 1))

    def score(self, given: TokensToScore) -> Tensor:
        """Raw objectness logits [B, N]."""
        tokens = given.project()
        with without_autocast(tokens):
            logits: Tensor = self.head(at_least_float32(tokens))  # [B, N, 1]
            return logits.squeeze(-1)
