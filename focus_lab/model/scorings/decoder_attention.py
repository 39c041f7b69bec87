"""Scores that imitate the decoder: Sparse DETR's scoring network (Sec. 3.3 there).

The network is that of the release, run once over the tokens of all levels; it is trained to say
which tokens the decoder's cross-attention will look at (`focus_lab.model.attention_map`).

Shape legend: B images, N tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.scorings.focus import ForegroundScorer
from focus_lab.model.token_selection import TokenSelector, TokensToScore


class DecoderAttentionSelector(TokenSelector):
    """Logits of being looked at by the decoder."""

    def __init__(
        self,
        hidden_dim: int,
        keep_ratio: float,
        cascade: Sequence[float],
        level_keep_ratios: Sequence[float] | None = None,
    ) -> None:
        """Selector for tokens of width `hidden_dim`; ratios as `TokenSelector`."""
        super().__init__(keep_ratio, cascade, level_keep_ratios)
        self.scorer = ForegroundScorer(hidden_dim)

    def score(self, given: TokensToScore) -> Tensor:
        """Raw logits [B, N]."""
        tokens = given.project()
        with without_autocast(tokens):
            scores: Tensor = self.scorer(at_least_float32(tokens))
            return scores
