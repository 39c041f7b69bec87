"""No learning: a token counts by the length of its feature, an unreliable statistic.

Shape legend: B images, N tokens, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from focus_lab.model.precision import at_least_float32
from focus_lab.model.token_selection import TokenSelector, TokensToScore


class FeatureNormSelector(TokenSelector):
    """The L2 norm of the neck's feature."""

    learns_foreground = False

    def score(self, given: TokensToScore) -> Tensor:
        """Norms [B, N]; no gradient reaches the features."""
        features = at_least_float32(given.features.detach())
        norms: Tensor = torch.linalg.vector_norm(features, dim=-1)
        return norms
