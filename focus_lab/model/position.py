"""Sine position embeddings: of the tokens of the feature levels, and of boxes in the decoder.

Shape legend: B images (B' is 1 when nothing is padded), N tokens, L levels, Q queries, d width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from focus_lab.model.feature_levels import FeatureLevels

# Keeps the normalisation finite; part of the released numbers.
_EPS = 1e-6
_BOX_TEMPERATURE = 10000.0


class TokenPositions(nn.Module):
    """Sine embedding of a token's row and column, plus a learnt embedding of its level."""

    def __init__(
        self, hidden_dim: int, num_feature_levels: int, temperature: float, offset: float
    ) -> None:
        """Embedding of width `hidden_dim`, half for the row and half for the column.

        Args:
            hidden_dim: d, a multiple of 4.
            num_feature_levels: L.
            temperature: base of the geometric series of wavelengths.
            offset: added to the 1-based row and column before they are normalised to (0, 2 pi].
        """
        super().__init__()
        self.hidden_dim = hidden_dim
        self.temperature = temperature
        self.offset = offset
        self.level_embedding = nn.Parameter(torch.randn(num_feature_levels, hidden_dim))

    def sine(self, levels: FeatureLevels) -> list[Tensor]:
        """Per level float32 [B', h, w, d], the row's channels first; no level embedding."""
        valid = levels.valid_rows_columns()
        embeddings = []
        for level, (height, width) in enumerate(levels.shapes):
            rows = self._axis(height, valid[:, level, :1])  # [B', h, d/2]
            columns = self._axis(width, valid[:, level, 1:])  # [B', w, d/2]
            embeddings.append(
                torch.cat(
                    (
                        rows[:, :, None].expand(-1, -1, width, -1),
                        columns[:, None].expand(-1, height, -1, -1),
                    ),
                    dim=-1,
                )
            )
        return embeddings

    def forward(self, levels: FeatureLevels) -> Tensor:
        """[B', N, d], sine embedding plus level embedding."""
        return torch.cat(
            [
                sine.flatten(1, 2) + embedding
                for sine, embedding in zip(self.sine(levels), self.level_embedding, strict=True)
            ],
            dim=1,
        )

    def _axis(self, cells: int, valid: Tensor) -> Tensor:
        # The release counts unpadded cells by a running sum: within padding the count stays at its
        # last value.
        position = torch.arange(1, cells + 1, device=valid.device).minimum(valid)  # [B', cells]
        angle = (position + self.offset) / (valid + _EPS) * (2 * math.pi)
        return sine_embedding(angle, self.hidden_dim // 2, self.temperature)


def sine_embedding(angles: Tensor, width: int, temperature: float) -> Tensor:
    """Sine (even channels) and cosine (odd channels) at a geometric series of frequencies.

    Args:
        angles: [...], radians at the highest frequency.
        width: channels, even.
        temperature: base of the series; pair j has frequency temperature^(-2j / width).

    Returns:
        [..., width].
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=angles.device) / width
    scaled = angles.unsqueeze(-1) / temperature**exponents  # [..., width / 2]
    return torch.stack((scaled.sin(), scaled.cos()), dim=-1).flatten(-2)


def box_embedding(boxes: Tensor, hidden_dim: int) -> Tensor:
    """Sine embedding of boxes for the decoder's query positions.

    Args:
        boxes: [..., 4], (cx, cy, w, h) as shares of the padded image.
        hidden_dim: d; each coordinate gets d / 2 channels.

    Returns:
        [..., 2 d], coordinates in the released order y, x, w, h.
    """
    angles = torch.cat((boxes[..., 1:2], boxes[..., 0:1], boxes[..., 2:]), dim=-1) * (2 * math.pi)
    return sine_embedding(angles, hidden_dim // 2, _BOX_TEMPERATURE).flatten(-2)
