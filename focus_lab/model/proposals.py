"""Proposals, one a token: what the scorer may look at, and how the decoder's queries start.

Shape legend: B images (B' is 1 when nothing is padded), N tokens, Q queries, C classes, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.tokens import take_tokens


@dataclass(frozen=True)
class TokenBoxes:
    """The box that each token proposes before anything is learnt."""

    logits: Tensor
    """float32 [B', N, 4], inverse sigmoid of (cx, cy, w, h); +inf where not usable."""
    usable: Tensor
    """bool [B', N, 1], False at padding and where the box leaves the border."""


@dataclass(frozen=True)
class QueryStart:
    """The tokens chosen as decoder queries."""

    indices: Tensor
    """int64 [B, Q], by falling class score."""
    pred_logits: Tensor
    """[B, Q, C], class logits of the chosen tokens."""
    pred_boxes: Tensor
    """[B, Q, 4], (cx, cy, w, h) in [0, 1] of the valid image."""


class Proposals(nn.Module):
    """The two-stage head: projects tokens, ranks them by class score, refines their boxes.

    The projection also feeds the foreground token selector, before the encoder.
    """

    def __init__(self, hidden_dim: int, num_queries: int, base_size: float, border: float) -> None:
        """Head for tokens of width `hidden_dim`.

        Args:
            hidden_dim: d.
            num_queries: most queries to choose; fewer when there are fewer tokens.
            base_size: width and height of a finest-level box as a share of the image; doubles each
                level.
            border: boxes with a coordinate outside (border, 1 - border) are not usable.
        """
        super().__init__()
        self.num_queries = num_queries
        self.base_size = base_size
        self.border = border
        self.projection = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def boxes(self, levels: FeatureLevels, padding_mask: Tensor | None) -> TokenBoxes:
        """The tokens' own boxes.

        Args:
            levels: levels of the tokens.
            padding_mask: bool [B, N]; None when nothing is padded.
        """
        centers = levels.centers()  # [B', N, 2]
        sizes = torch.cat(
            [
                centers.new_full((length,), self.base_size * 2.0**level)
                for level, length in enumerate(levels.lengths)
            ]
        )
        boxes = torch.cat(
            (centers, sizes[None, :, None].expand(centers.shape)), dim=-1
        )  # [B', N, 4]
        usable = ((boxes > self.border) & (boxes < 1 - self.border)).all(dim=-1, keepdim=True)
        if padding_mask is not None:
            usable = usable & ~padding_mask.unsqueeze(-1)
        logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable, float("inf"))
        return TokenBoxes(logits, usable)

    def project(self, tokens: Tensor, usable: Tensor) -> Tensor:
        """Projected tokens [B, T, d]; those not `usable` [B' or B, T, 1] become one constant."""
        out: Tensor = self.norm(self.projection(tokens.masked_fill(~usable, 0.0)))
        return out

    def forward(
        self, memory: Tensor, boxes: TokenBoxes, class_head: nn.Module, box_head: nn.Module
    ) -> QueryStart:
        """Chooses the tokens with the highest class logits.

        All tokens are ranked without gradient, then the chosen ones are projected again with it:
        the numbers are those of projecting all, at a fraction of the backward pass.

        Args:
            memory: [B, N, d], encoder output.
            boxes: the tokens' own boxes.
            class_head: d -> C.
            box_head: d -> 4, added to the boxes' logits.
        """
        with without_autocast(memory):
            memory = at_least_float32(memory)
            with torch.no_grad():
                ranking = class_head(self.project(memory, boxes.usable)).amax(-1)  # [B, N]
                count = min(self.num_queries, ranking.shape[1])
                indices = ranking.topk(count, dim=1, sorted=True).indices  # [B, Q]
            chosen = self.project(take_tokens(memory, indices), take_tokens(boxes.usable, indices))
            box_logits = box_head(chosen) + take_tokens(boxes.logits, indices)
            return QueryStart(indices, class_head(chosen), box_logits.sigmoid())
