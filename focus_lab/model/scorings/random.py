"""Scores by lot: the lower bound of all scorings.

A token's score is a hash of (seed of the step, number of the image, level, row, column) and of
nothing else. So it is the same on every device, in a resumed training, for any number of workers,
and whatever else is in the batch.

Shape legend: B images, N tokens, h and w of one level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from focus_lab.model.token_selection import TokenSelector, TokensToScore

# SplitMix64 (Steele, Lea, Flood 2014): step and the two multipliers of its finaliser, as signed
# 64-bit integers, the only ones that torch multiplies.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_SIDE = 2**16
"""More than the rows and columns of any level."""


class RandomSelector(TokenSelector):
    """Uniform numbers, fresh in every step of a training, the same for an image in evaluation."""

    learns_foreground = False

    def score(self, given: TokensToScore) -> Tensor:
        """Uniform in [0, 1), [B, N]."""
        device = given.features.device
        ids = given.image_ids or tuple(range(given.features.shape[0]))
        images = torch.tensor(ids, dtype=torch.int64, device=device) % 2**62
        keys = _mixed(_mixed(images) + given.seed % 2**62)  # [B]
        places = []
        for level, (height, width) in enumerate(given.levels.shapes):
            rows = torch.arange(height, device=device)[:, None] + level * _SIDE  # [h, 1]
            places.append((rows * _SIDE + torch.arange(width, device=device)).flatten())
        hashed = _mixed(keys[:, None] + torch.cat(places) * _STEP)  # [B, N]
        # 24 bits are what float32 holds exactly.
        scores: Tensor = _shifted(hashed, 40).to(torch.float32) / 2**24
        return scores


def _mixed(numbers: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64 numbers; products wrap around."""
    numbers = numbers + _STEP
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right that fills with zeros; torch's own fills with the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
