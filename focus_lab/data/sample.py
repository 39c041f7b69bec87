"""One image with its boxes, before and after transforms, and the form the model is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor


class Target(TypedDict):
    """What the model is given for one image."""

    labels: Tensor
    """int64 [n], 0 .. C-1."""
    boxes: Tensor
    """float32 [n, 4], cxcywh in [0, 1] of the valid (unpadded) image."""


@dataclass(frozen=True)
class Sample:
    """One image and its boxes. Crowd regions are never part of a sample."""

    image: Tensor
    """uint8 [3, H, W], RGB; any memory layout."""
    boxes_xyxy: Tensor
    """float32 [n, 4], left, top, right, bottom in pixels of `image`; n may be 0."""
    labels: Tensor
    """int64 [n], contiguous classes 0 .. C-1."""
    image_id: int
    """Id in the data set's annotations."""
    original_size: tuple[int, int]
    """(height, width) of the stored image, before any transform."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of `image`."""
        return int(self.image.shape[1]), int(self.image.shape[2])


def target_of(sample: Sample) -> Target:
    """The sample's boxes as cxcywh shares of its image."""
    height, width = sample.size
    low, high = sample.boxes_xyxy[:, :2], sample.boxes_xyxy[:, 2:]
    scale = torch.tensor([width, height], dtype=torch.float32)
    boxes = torch.cat(((low + high) / 2 / scale, (high - low) / scale), dim=1)  # [n, 4]
    return {"labels": sample.labels, "boxes": boxes}
