"""Self-attention whose queries and keys carry a position and whose values do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head attention of a token sequence with itself.

    Shape legend: B images, T tokens, d width, H heads.
    """

    def __init__(self, hidden_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        """Attention of width `hidden_dim` with `num_heads` heads.

        Args:
            hidden_dim: d, a multiple of `num_heads`.
            num_heads: H.
            dropout: share of attention weights and outputs dropped in training.
        """
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        # Rows: query, key, value projection; one tensor, so that xavier sees its whole fan-out.
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden_dim, hidden_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden_dim))
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, positions: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Attended tokens, without residual.

        Args:
            tokens: [B, T, d].
            positions: [B, T, d], added to queries and keys.
            blocked: bool [T, T], True where a token (row) may not see another (column).

        Returns:
            [B, T, d].
        """
        width = tokens.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query_key = functional.linear(tokens + positions, weight[: 2 * width], bias[: 2 * width])
        value = functional.linear(tokens, weight[2 * width :], bias[2 * width :])
        query, key = query_key.chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(
            self._heads(query),
            self._heads(key),
            self._heads(value),
            attn_mask=None if blocked is None else ~blocked,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, H, T, d / H]
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return functional.dropout(out, self.dropout, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, H, T, d / H]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
