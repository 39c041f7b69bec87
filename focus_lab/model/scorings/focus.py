"""The released scoring: a foreground logit a token, coarse levels modulating finer ones (Eq. 2).

Shape legend: B images, N tokens, T tokens of one level, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.token_selection import TokenSelector, TokensToScore


class ForegroundScorer(nn.Module):
    """One foreground logit a token; half of the channels are their mean over the tokens given."""

    def __init__(self, hidden_dim: int) -> None:
        """Scorer of tokens of width `hidden_dim`, a multiple of 4."""
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.expand = nn.Linear(hidden_dim, hidden_dim)
        self.mix = nn.Linear(hidden_dim, hidden_dim // 2)
        self.shrink = nn.Linear(hidden_dim // 2, hidden_dim // 4)
        self.logit = nn.Linear(hidden_dim // 4, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores of one level, [B, T, d] -> [B, T]; padding takes part in the mean, as released."""
        local, context = functional.gelu(self.expand(self.norm(tokens))).chunk(
            2, dim=-1
        )  # [B, T, d / 2] each
        # The mean is the same for all tokens: its share of the next layer is computed once a level.
        half = local.shape[-1]
        shared = functional.linear(
            context.mean(dim=1, keepdim=True), self.mix.weight[:, half:], self.mix.bias
        )
        hidden = functional.gelu(functional.linear(local, self.mix.weight[:, :half]) + shared)
        out: Tensor = self.logit(functional.gelu(self.shrink(hidden)))
        return out.squeeze(-1)


class FocusSelector(TokenSelector):
    """Foreground scores by one scorer for all levels, top-down modulated.

    The modulation multiplies a token by one number, and the scorer begins with a layer norm: what
    gets through is the number's sign (and its closeness to zero), in the release as here.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_feature_levels: int,
        keep_ratio: float,
        cascade: Sequence[float],
        level_keep_ratios: Sequence[float] | None = None,
        modulation_range: float | None = 0.3,
    ) -> None:
        """Selector for tokens of width `hidden_dim`.

        Args:
            hidden_dim: d.
            num_feature_levels: L.
            keep_ratio: as `TokenSelector`.
            cascade: as `TokenSelector`.
            level_keep_ratios: as `TokenSelector`.
            modulation_range: the learnt scales (alpha, Eq. 2) start uniform in ± this; None scores
                every level on its own.
        """
        super().__init__(keep_ratio, cascade, level_keep_ratios)
        self.scorer = ForegroundScorer(hidden_dim)
        self.modulation_scales: nn.Parameter | None = None
        if modulation_range is not None and num_feature_levels > 1:
            # From the coarsest step to the finest, in the order in which they are used.
            scales = torch.empty(num_feature_levels - 1).uniform_(
                -modulation_range, modulation_range
            )
            self.modulation_scales = nn.Parameter(scales)

    def score(self, given: TokensToScore) -> Tensor:
        """Raw foreground logits [B, N]."""
        tokens, levels = given.project(), given.levels
        with without_autocast(tokens):
            per_level = torch.split(at_least_float32(tokens), list(levels.lengths), dim=1)
            scores: list[Tensor] = []
            for level in reversed(range(len(per_level))):
                features = per_level[level]
                if scores and self.modulation_scales is not None:
                    coarser = scores[-1].view(-1, 1, *levels.shapes[level + 1])
                    enlarged = functional.interpolate(
                        coarser, size=levels.shapes[level], mode="bilinear", align_corners=True
                    )  # [B, 1, h, w]
                    factor = (
                        enlarged.flatten(1).unsqueeze(-1) * self.modulation_scales[len(scores) - 1]
                    )
                    features = features + features * factor
                scores.append(self.scorer(features))
            return torch.cat(scores[::-1], dim=1)
