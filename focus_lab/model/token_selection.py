"""The foreground token selector: scores all tokens, keeps the best (Sec. 3.2).

Shape legend: B images, N tokens, L levels, K tokens kept by the first encoder layer, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.output import SelectedTokens
from focus_lab.model.precision import at_least_float32, without_autocast


class ForegroundScorer(nn.Module):
    """One foreground logit a token; half of the channels are their mean over the level."""

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


class TokenSelector(nn.Module):
    """Foreground scores, top-down modulated, and the nested token sets of the encoder layers.

    The modulation multiplies a token by one number, and the scorer begins with a layer norm: what
    gets through is the number's sign (and its closeness to zero), in the release as here.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_feature_levels: int,
        keep_ratio: float,
        cascade: Sequence[float],
        modulation_range: float | None = 0.3,
    ) -> None:
        """Selector for tokens of width `hidden_dim`.

        Args:
            hidden_dim: d.
            num_feature_levels: L.
            keep_ratio: share of the valid tokens that the first layer may refine (rho), in (0, 1].
            cascade: per encoder layer the share of the kept tokens, never rising.
            modulation_range: the learnt scales (alpha, Eq. 2) start uniform in ± this; None scores
                every level on its own.
        """
        super().__init__()
        self.keep_ratio = keep_ratio
        self.cascade = tuple(cascade)
        self.scorer = ForegroundScorer(hidden_dim)
        self.modulation_scales: nn.Parameter | None = None
        if modulation_range is not None and num_feature_levels > 1:
            # From the coarsest step to the finest, in the order in which they are used.
            scales = torch.empty(num_feature_levels - 1).uniform_(
                -modulation_range, modulation_range
            )
            self.modulation_scales = nn.Parameter(scales)

    def score(self, tokens: Tensor, levels: FeatureLevels) -> Tensor:
        """Raw foreground logits, padding not masked.

        Args:
            tokens: [B, N, d], projected tokens with position.
            levels: their levels.

        Returns:
            [B, N], at least float32 under autocast too, because they are ranked.
        """
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

    def forward(
        self, tokens: Tensor, levels: FeatureLevels, padding_mask: Tensor | None
    ) -> tuple[Tensor, SelectedTokens]:
        """Scores of all tokens and the tokens of each encoder layer.

        Args:
            tokens: [B, N, d], projected tokens with position.
            levels: their levels.
            padding_mask: bool [B, N], True at padding; None when nothing is padded.

        Returns:
            Raw logits [B, N] (for the foreground loss), and the selection (no gradient).
        """
        logits = self.score(tokens, levels)
        scores = logits.detach()
        if padding_mask is not None:
            # The lowest score of the whole batch, as released, so that it stays finite; one step of
            # rounding below it, so that padding never wins a tie against the worst token of an
            # image.
            lowest = scores.amin()
            scores = torch.where(
                padding_mask, lowest.nextafter(lowest.new_full((), -torch.inf)), scores
            )
        budgets, counts = token_budgets(
            levels.valid_counts, levels.num_tokens, self.keep_ratio, self.cascade
        )
        best, order = scores.topk(counts[0], dim=1, sorted=True)
        selection = SelectedTokens(
            indices=tuple(order[:, :count] for count in counts),
            scores=best,
            counts=counts,
            budgets=budgets,
            valid_counts=levels.valid_counts,
            level_shapes=levels.shapes,
        )
        return logits, selection


def token_budgets(
    valid_counts: Sequence[int], num_tokens: int, keep_ratio: float, cascade: Sequence[float]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many tokens each image may update and each encoder layer takes.

    n_b = trunc(valid_b * keep_ratio) + 1 and k_i = trunc(cascade_i * max n_b), both products in
    float32 as released, clamped to the tokens that there are and to at least one.

    Args:
        valid_counts: per image the tokens that are not padding.
        num_tokens: N.
        keep_ratio: rho.
        cascade: one share an encoder layer, never rising; the first may be below 1.

    Returns:
        Budgets n_b by image, and counts k_i by layer; counts never rise.
    """
    budgets = tuple(
        min(int(np.float32(valid) * np.float32(keep_ratio)) + 1, max(valid, 1))
        for valid in valid_counts
    )
    longest = max(budgets)
    counts = tuple(
        min(max(int(np.float32(share) * np.float32(longest)), 1), num_tokens) for share in cascade
    )
    return budgets, counts
