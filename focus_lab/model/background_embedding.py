"""Telling the decoder where the encoder did not look (Salience-DETR's background embedding).

Shape legend: B images, N tokens, h and w of one level, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from focus_lab.model.feature_levels import FeatureLevels, host_tensor
from focus_lab.model.output import SelectedTokens


class BackgroundEmbedding(nn.Module):
    """A learnt row and column embedding, shared by all levels, half of the channels each."""

    def __init__(self, hidden_dim: int, size: int) -> None:
        """Tables of `size` rows and columns, uniform in [0, 1); beyond, the last is used."""
        super().__init__()
        self.rows = nn.Embedding(size, hidden_dim // 2)
        self.columns = nn.Embedding(size, hidden_dim // 2)
        for table in (self.rows, self.columns):
            nn.init.uniform_(table.weight)

    def forward(
        self,
        memory: Tensor,
        levels: FeatureLevels,
        padding_mask: Tensor | None,
        selection: SelectedTokens,
    ) -> Tensor:
        """The memory [B, N, d], with embeddings at the tokens that the last layer did not refine.

        Args:
            memory: [B, N, d].
            levels: levels of the memory.
            padding_mask: bool [B, N], True where nothing is added; None when nothing is padded.
            selection: tokens of each layer.
        """
        background = ~_refined_last(selection, memory)
        if padding_mask is not None:
            background = background & ~padding_mask
        embedding = torch.cat([self._of_level(*shape) for shape in levels.shapes])  # [N, d]
        return memory + embedding * background.unsqueeze(-1)

    def _of_level(self, height: int, width: int) -> Tensor:
        """[h * w, d]."""
        device, last = self.rows.weight.device, self.rows.num_embeddings - 1
        rows = self.rows(torch.arange(height, device=device).clamp(max=last))  # [h, d / 2]
        columns = self.columns(torch.arange(width, device=device).clamp(max=last))  # [w, d / 2]
        return torch.cat(
            (rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)), dim=-1
        ).flatten(0, 1)


def _refined_last(selection: SelectedTokens, memory: Tensor) -> Tensor:
    """Tokens that the last encoder layer updates, bool [B, N]."""
    indices = selection.indices[-1]  # [B, k]
    budgets = host_tensor(selection.budgets, torch.int64, memory.device)[:, None]
    updated = torch.arange(indices.shape[1], device=memory.device) < budgets  # [B, k]
    return torch.zeros(memory.shape[:2], dtype=torch.bool, device=memory.device).scatter(
        1, indices, updated
    )
