"""Where the decoder looks: its cross-attention, added up token by token (Sparse DETR, Sec. 3.3).

Each sample of each query, head and layer adds its attention weight to the four cells around its
place, bilinearly. As in Sparse DETR's code, cell (0, 0) is at place 0 and not, as in sampling, at
half a cell; what falls outside of a level is dropped.

Shape legend: B images, Q queries, H heads, L levels, P points, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from focus_lab.model.feature_levels import FeatureLevels, host_tensor
from focus_lab.model.precision import at_least_float32


class AttentionMap:
    """Sums the attention of a decoder's queries; no gradient flows through it."""

    def __init__(self, levels: FeatureLevels, first_query: int = 0) -> None:
        """An empty map.

        Args:
            levels: levels of the memory.
            first_query: queries before it, which repair noised boxes, do not count.
        """
        self._levels = levels
        self._first_query = first_query
        self._sum = torch.zeros(levels.batch_size, levels.num_tokens, device=levels.device)

    @torch.no_grad()
    def add(self, locations: Tensor, weights: Tensor) -> None:
        """Add what a layer looks at.

        Args:
            locations: [B, Q, H, L, P, 2], (x, y) as shares of each padded level.
            weights: [B, Q, H, L, P].
        """
        sides = self._levels.widths_heights()[:, None]  # [L, 1, 2]
        places = locations[:, self._first_query :].to(self._sum) * sides
        weights = weights[:, self._first_query :].to(self._sum)
        corner = places.floor()
        past = places - corner  # in [0, 1)
        first = 0
        for level, (height, width) in enumerate(self._levels.shapes):
            for right in (0, 1):
                for below in (0, 1):
                    x = corner[..., level, :, 0].long() + right  # [B, Q, H, P]
                    y = corner[..., level, :, 1].long() + below
                    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                    share_x, share_y = past[..., level, :, :].unbind(-1)
                    share = (share_x if right else 1 - share_x) * (
                        share_y if below else 1 - share_y
                    )
                    token = first + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
                    share = share * weights[..., level, :] * inside
                    self._sum.scatter_add_(1, token.flatten(1), share.flatten(1))
            first += height * width

    def of_tokens(self, padding_mask: Tensor | None) -> Tensor:
        """The sums, float32 [B, N] and at least 0; -1 where `padding_mask` [B, N] is True."""
        if padding_mask is None:
            return self._sum
        return self._sum.masked_fill(padding_mask, -1.0)


def attention_labels(attention: Tensor, budgets: Sequence[int]) -> Tensor:
    """The tokens that the decoder looked at most.

    Args:
        attention: [B, N] from `AttentionMap.of_tokens`.
        budgets: how many tokens of each image count, at most those that are not padding.

    Returns:
        bool [B, N]; ties go to the earlier token.
    """
    order = attention.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(attention.shape[1], device=attention.device)
    among_the_first = ranks < host_tensor(budgets, torch.int64, attention.device)[:, None]
    return torch.zeros_like(among_the_first).scatter(1, order, among_the_first)


def attention_loss(logits: Tensor, attention: Tensor, budgets: Sequence[int]) -> Tensor:
    """Binary cross-entropy of a scorer that imitates the decoder, over tokens, then over images.

    Sparse DETR sets padding to the lowest logit of the batch and keeps it in the mean; here it is
    left out, so that an image's loss does not depend on what else is in its batch.

    Args:
        logits: [B, N].
        attention: [B, N] from `AttentionMap.of_tokens`.
        budgets: as `attention_labels`.
    """
    logits = at_least_float32(logits)
    labels = attention_labels(attention, budgets).to(logits.dtype)
    loss = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    valid = attention >= 0  # [B, N]
    return ((loss * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)).mean()
