"""The foreground token selector: scores all tokens, keeps the best (Sec. 3.2).

What scores them is one file a scoring in `focus_lab.model.scorings`.

Shape legend: B images (B' is 1 when nothing is padded), N tokens, K tokens of the largest layer, d
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from focus_lab.model.feature_levels import FeatureLevels, host_tensor
from focus_lab.model.output import SelectedTokens, Target


@dataclass(frozen=True)
class TokensToScore:
    """What a scoring may look at."""

    features: Tensor
    """[B, N, d], the neck's features of all tokens."""
    levels: FeatureLevels
    """Their levels."""
    padding_mask: Tensor | None
    """bool [B, N], True at padding; None when nothing is padded."""
    project: Callable[[], Tensor]
    """Computes [B, N, d], the features with position through the projection of the proposals."""
    strides: tuple[int, ...]
    """Pixels between tokens of each level."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image without its padding."""
    targets: Sequence[Target] | None = None
    """Boxes of each image, where they are known."""
    image_ids: tuple[int, ...] = ()
    """A number of each image that it has in every batch."""
    seed: int = 0
    """Of the step in training; 0 in evaluation."""


class TokenSelector(nn.Module):
    """Scores of all tokens, and the nested token sets of the encoder layers."""

    learns_foreground = True
    """Whether the scores are logits that a foreground loss trains."""

    def __init__(
        self,
        keep_ratio: float,
        cascade: Sequence[float],
        level_keep_ratios: Sequence[float] | None = None,
    ) -> None:
        """Selector without a score; scorings add it.

        Args:
            keep_ratio: share of the valid tokens that may be refined (rho), in (0, 1].
            cascade: per encoder layer the share of the kept tokens.
            level_keep_ratios: per level a share that multiplies `keep_ratio`; each level then keeps
                its own best. None ranks the tokens of all levels together.
        """
        super().__init__()
        self.level_keep_ratios = None if level_keep_ratios is None else tuple(level_keep_ratios)
        self.keep_ratio = keep_ratio
        self.cascade = tuple(cascade)

    def score(self, given: TokensToScore) -> Tensor:
        """Scores [B, N], at least float32 because they are ranked; padding not masked."""
        raise NotImplementedError

    def forward(self, given: TokensToScore) -> tuple[Tensor | None, SelectedTokens]:
        """Scores of all tokens and the tokens of each encoder layer.

        Returns:
            Raw foreground logits [B, N] for their loss, None when nothing is learnt, and the
            selection (no gradient).
        """
        scores = self.score(given)
        selection = self.select(scores.detach(), given.levels, given.padding_mask)
        return scores if self.learns_foreground else None, selection

    def select(
        self, scores: Tensor, levels: FeatureLevels, padding_mask: Tensor | None
    ) -> SelectedTokens:
        """The best tokens.

        Args:
            scores: [B, N].
            levels: levels of the tokens.
            padding_mask: bool [B, N], True at padding; None when nothing is padded.
        """
        if padding_mask is not None:
            # The lowest score of the whole batch, as released, so that it stays finite; one step of
            # rounding below it, so that padding never wins a tie against the worst token of an
            # image.
            lowest = scores.amin()
            scores = torch.where(
                padding_mask, lowest.nextafter(lowest.new_full((), -torch.inf)), scores
            )
        if self.level_keep_ratios is None:
            budgets = token_budgets(levels.valid_counts, self.keep_ratio)
            counts = token_counts(budgets, levels.num_tokens, self.cascade)
            best, order = scores.topk(max(counts), dim=1, sorted=True)
        else:
            by_level = level_budgets(
                levels.valid_level_counts, self.keep_ratio, self.level_keep_ratios
            )
            budgets = tuple(sum(each) for each in by_level)
            counts = token_counts(budgets, levels.num_tokens, self.cascade)
            order = best_of_each_level(scores, levels.lengths, by_level)[:, : max(counts)]
            best = scores.gather(1, order)
        return SelectedTokens(
            indices=tuple(order[:, :count] for count in counts),
            scores=best,
            counts=counts,
            budgets=budgets,
            valid_counts=levels.valid_counts,
            level_shapes=levels.shapes,
        )


def token_budgets(valid_counts: Sequence[int], keep_ratio: float) -> tuple[int, ...]:
    """How many tokens each image may update: trunc(valid * keep_ratio) + 1.

    The product is in float32 as released; clamped to the tokens that there are, and to at least
    one.

    Args:
        valid_counts: per image the tokens that are not padding.
        keep_ratio: rho.
    """
    return tuple(
        min(int(np.float32(valid) * np.float32(keep_ratio)) + 1, max(valid, 1))
        for valid in valid_counts
    )


def level_budgets(
    valid_counts: Sequence[Sequence[int]], keep_ratio: float, level_keep_ratios: Sequence[float]
) -> tuple[tuple[int, ...], ...]:
    """How many tokens of each level an image may update: trunc(valid * keep_ratio * ratio).

    At least one of each level that has any.

    Args:
        valid_counts: per image and level the tokens that are not padding.
        keep_ratio: a factor of all levels' ratios.
        level_keep_ratios: one a level, in (0, 1].
    """
    return tuple(
        tuple(
            min(max(int(np.float32(valid) * np.float32(keep_ratio * ratio)), 1), valid)
            for valid, ratio in zip(image, level_keep_ratios, strict=True)
        )
        for image in valid_counts
    )


def token_counts(
    budgets: Sequence[int], num_tokens: int, cascade: Sequence[float]
) -> tuple[int, ...]:
    """How many tokens each encoder layer takes: k_i = trunc(cascade_i * max n_b), at least one.

    Args:
        budgets: n_b, what each image may update.
        num_tokens: N.
        cascade: one share an encoder layer; they may rise, and the largest may be below 1.
    """
    longest = max(budgets)
    return tuple(
        min(max(int(np.float32(share) * np.float32(longest)), 1), num_tokens) for share in cascade
    )


def best_of_each_level(
    scores: Tensor, lengths: Sequence[int], budgets: Sequence[Sequence[int]]
) -> Tensor:
    """Token numbers by falling score, [B, N], after those within the budget of their level.

    Args:
        scores: [B, N], padding lowest.
        lengths: tokens of each level.
        budgets: per image and level how many come first.
    """
    allowed = host_tensor(budgets, torch.int64, scores.device)  # [B, L]
    within = []
    for level, of_level in enumerate(torch.split(scores, list(lengths), dim=1)):
        order = of_level.argsort(dim=1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=scores.device) < allowed[:, level : level + 1]
        within.append(torch.zeros_like(first).scatter(1, order, first))
    order = scores.argsort(dim=1, descending=True, stable=True)
    # A stable sort by one key after the other.
    later = (~torch.cat(within, dim=1)).gather(1, order)
    return order.gather(1, later.to(torch.uint8).argsort(dim=1, stable=True))
