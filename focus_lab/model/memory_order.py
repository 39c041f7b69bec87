"""The order in which a layer's tokens are worked on: neighbours in the image follow each other.

Sampling is bound by memory. Tokens by falling score jump about the feature maps, neighbours share
what they read. The operations on a layer's tokens do not depend on their order, so results stay.

Shape legend: B images, N tokens, K tokens of the largest encoder layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from focus_lab.model.feature_levels import host_tensor
from focus_lab.model.output import SelectedTokens

_BITS = 10
"""Of each coordinate: finer than a token on images up to 8,192 pixels at stride 8."""


def memory_order(selection: SelectedTokens) -> Tensor:
    """How to permute the largest layer's tokens so that neighbours follow each other.

    Layers take prefixes, and an image updates a prefix of each: tokens move only between two such
    borders, so that every prefix stays the same set.

    Args:
        selection: the tokens by falling score.

    Returns:
        int64 [B, K], for `gather`.
    """
    indices = selection.largest
    positions = torch.arange(indices.shape[1], device=indices.device)
    borders = sorted(set(selection.counts))[:-1]
    band = host_tensor(selection.budgets, torch.int64, indices.device)[:, None] <= positions
    band = band.to(torch.int64)  # [B, K]
    for border in borders:
        band = band + (positions >= border)
    along = along_the_image(selection.level_shapes, indices.device)[indices]  # [B, K]
    order: Tensor = (band * 4**_BITS + along).argsort(dim=1)
    return order


def along_the_image(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Place of every token's centre on a Z-shaped curve (Morton 1966) that all levels share.

    Returns:
        int64 [N], below 4 to the power of 10.
    """
    levels = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) * 2 + 1) * 2**_BITS // (2 * height)  # [h]
        x = (torch.arange(width, device=device) * 2 + 1) * 2**_BITS // (2 * width)  # [w]
        levels.append((_spread(y)[:, None] * 2 + _spread(x)).flatten())
    return torch.cat(levels)


def _spread(number: Tensor) -> Tensor:
    """Bit i of a number below 2 to the power of 10 moves to bit 2 i."""
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        number = (number | number << shift) & mask
    return number
