"""The boxes of a batch as rectangular tensors, so that no loss has to loop over images.

Shape legend: B images, M the largest number of boxes of an image, T all boxes of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from focus_lab.model.output import Target


@dataclass(frozen=True)
class PaddedTargets:
    """Boxes and labels of a batch, padded with zeros to the image with most boxes.

    The T true entries, image by image, are `labels[images, positions]`. M and T may be 0.
    """

    labels: Tensor
    """int64 [B, M]."""
    boxes: Tensor
    """[B, M, 4], (cx, cy, w, h) in [0, 1] of the valid image."""
    counts: tuple[int, ...]
    """Number of boxes of each image; host numbers, so that nobody waits for the device."""
    images: Tensor
    """int64 [T], the image of each box."""
    positions: Tensor
    """int64 [T], the number of each box in its image."""

    @property
    def total(self) -> int:
        """Number of boxes of the batch, T."""
        return sum(self.counts)

    @property
    def width(self) -> int:
        """Largest number of boxes of an image, M."""
        return max(self.counts)


def pad_targets(targets: Sequence[Target]) -> PaddedTargets:
    """Pad the targets of a batch of at least one image; any of them may be without boxes."""
    device = targets[0]["boxes"].device
    counts = np.array([len(target["boxes"]) for target in targets])
    places = np.stack(
        (
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([np.arange(count) for count in counts]),
        )
    )  # [2, T]
    images, positions = torch.from_numpy(places.astype(np.int64)).to(device).unbind()
    return PaddedTargets(
        labels=pad_sequence([target["labels"] for target in targets], batch_first=True),
        boxes=pad_sequence([target["boxes"] for target in targets], batch_first=True),
        counts=tuple(counts.tolist()),
        images=images,
        positions=positions,
    )
