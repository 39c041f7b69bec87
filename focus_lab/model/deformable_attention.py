"""Multi-scale deformable attention with its projections (Deformable DETR, Sec. 4.1).

Shape legend: B images (B' is 1 when nothing is padded), Q queries, S tokens of all levels, L
levels, P points a head and level, H heads, d width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from focus_lab.model.attention_map import AttentionMap
from focus_lab.model.precision import at_least_float32
from focus_lab.ops import Implementation, LevelShapes, projected_deformable_attention
from focus_lab.ops.reference import samples_of


class DeformableAttention(nn.Module):
    """Each query looks at a few points of each level, offset from its reference point."""

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dropout: float = 0.0,
        implementation: Implementation = "reference",
    ) -> None:
        """Attention of width `hidden_dim`.

        Args:
            hidden_dim: d, a multiple of `num_heads`.
            num_heads: H.
            num_levels: L.
            num_points: P.
            dropout: share of outputs dropped in training.
            implementation: of the sampling operation.
        """
        super().__init__()
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.implementation: Implementation = implementation
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, samples * 2)
        self.attention_weights = nn.Linear(hidden_dim, samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let each head look in its own direction, point p at distance p, all weights equal."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # [H, 2]
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)  # [P]
        offsets = directions[:, None, None] * distances[:, None]  # [H, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        reference_points: Tensor,
        value: Tensor,
        shapes: LevelShapes,
        widths_heights: Tensor,
        attention_map: AttentionMap | None = None,
    ) -> Tensor:
        """Attended values, without residual.

        Args:
            queries: [B, Q, d], position included.
            reference_points: [B', Q, L, 2] points or [B', Q, L, 4] boxes (cx, cy, w, h), shares of
                each padded level; the level axis may be 1.
            value: [B, S, H, d / H] from `project_values`.
            shapes: (height, width) of the levels.
            widths_heights: float32 [L, 2], the same as (width, height) on the device.
            attention_map: where to write down what is looked at; None does not.

        Returns:
            [B, Q, d].
        """
        grid = (*queries.shape[:2], self.num_heads, self.num_levels, self.num_points)
        # 16 bits under autocast. The locations made of them need float32, as the anchors have it:
        # 16 bits are two thirds of a pixel on a wide level.
        offsets = self.sampling_offsets(queries).view(*grid, 2)
        logits = self.attention_weights(queries).view(*grid[:3], -1)
        exact = torch.promote_types(reference_points.dtype, offsets.dtype)
        reference_points = at_least_float32(reference_points.to(exact))
        if attention_map is not None:
            with torch.no_grad():
                attention_map.add(*samples_of(reference_points, offsets, logits, widths_heights))
        sampled = projected_deformable_attention(
            value,
            shapes,
            reference_points,
            offsets,
            logits,
            self.implementation,
            widths_heights,
        )
        out: Tensor = self.dropout(self.output_proj(sampled))
        return out


def project_values(
    attentions: Sequence[DeformableAttention], tokens: Tensor, padding_mask: Tensor | None
) -> tuple[Tensor, ...]:
    """Value projections of the same tokens for several layers, in one product.

    Args:
        attentions: the layers' attentions, all of one shape.
        tokens: [B, S, d].
        padding_mask: bool [B, S], True where the value must be zero; None when nothing is padded.

    Returns:
        One [B, S, H, d / H] for each attention.
    """
    weights: list[Tensor] = [attention.value_proj.weight for attention in attentions]
    biases: list[Tensor] = [attention.value_proj.bias for attention in attentions]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = biases[0] if len(biases) == 1 else torch.cat(biases)
    values = functional.linear(tokens, weight, bias)  # [B, S, layers * d]
    if padding_mask is not None:
        values = values.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    batch, length = tokens.shape[:2]
    values = values.view(batch, length, len(attentions), attentions[0].num_heads, -1)
    return values.unbind(2)
