"""Feed-forward networks: the block of a transformer layer, and the perceptrons of the heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Linear, ReLU, Linear; the residual and the norm belong to the layer."""

    def __init__(self, hidden_dim: int, dim_feedforward: int, dropout: float = 0.0) -> None:
        """Block from and to width `hidden_dim` over `dim_feedforward` hidden channels."""
        super().__init__()
        self.expand = nn.Linear(hidden_dim, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        hidden = self.dropout(functional.relu(self.expand(x)))
        out: Tensor = self.dropout(self.contract(hidden))
        return out


class Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        """One layer for each neighbouring pair of `widths`, input first."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., widths[0]] -> [..., widths[-1]]."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out
