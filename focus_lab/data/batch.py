"""Several images as one padded tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from focus_lab.data.sample import Sample, Target, target_of
from focus_lab.specs.data import Normalisation


@dataclass(frozen=True)
class Batch:
    """Images of one step, B of them."""

    images: Tensor
    """float32 [B, 3, H, W], normalised; zero to the right of and below each image."""
    sizes: tuple[tuple[int, int], ...]
    """Valid (height, width) of each image inside the padding."""
    targets: list[Target]
    """Boxes of each image."""
    image_ids: tuple[int, ...]
    """Ids in the data set's annotations."""
    original_sizes: tuple[tuple[int, int], ...]
    """(height, width) of each stored image, in whose pixels detections are reported."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; copied without waiting when the memory is pinned."""
        targets: list[Target] = [
            {
                "labels": target["labels"].to(device, non_blocking=True),
                "boxes": target["boxes"].to(device, non_blocking=True),
            }
            for target in self.targets
        ]
        images = self.images.to(device, non_blocking=True)
        return Batch(images, self.sizes, targets, self.image_ids, self.original_sizes)

    def on_canvas(self, height: int, width: int) -> Batch:
        """The batch padded further, to [B, 3, height, width]."""
        rows, columns = height - self.images.shape[-2], width - self.images.shape[-1]
        if rows == columns == 0:
            return self
        images = functional.pad(self.images, (0, columns, 0, rows))
        return replace(self, images=images)

    def split(self, parts: int) -> list[Batch]:
        """At most `parts` batches of consecutive images, about equally many, on the same canvas."""
        count = min(parts, len(self))
        edges = [len(self) * part // count for part in range(count + 1)]
        return [self._slice(start, stop) for start, stop in pairwise(edges)]

    def _slice(self, start: int, stop: int) -> Batch:
        return Batch(
            self.images[start:stop],
            self.sizes[start:stop],
            self.targets[start:stop],
            self.image_ids[start:stop],
            self.original_sizes[start:stop],
        )


@dataclass(frozen=True)
class PackedBatch:
    """A batch with the boxes of all images in one tensor.

    So three tensors cross a process border, not 2 B + 1.
    """

    images: Tensor
    """As in `Batch`."""
    boxes: Tensor
    """float32 [sum n, 4], cxcywh shares."""
    labels: Tensor
    """int64 [sum n]."""
    counts: tuple[int, ...]
    """Boxes of each image."""
    sizes: tuple[tuple[int, int], ...]
    """As in `Batch`."""
    image_ids: tuple[int, ...]
    """As in `Batch`."""
    original_sizes: tuple[tuple[int, int], ...]
    """As in `Batch`."""

    def pin_memory(self) -> PackedBatch:
        """A copy in page-locked memory; called by torch's loader."""
        return PackedBatch(
            self.images.pin_memory(),
            self.boxes.pin_memory(),
            self.labels.pin_memory(),
            *(self.counts, self.sizes, self.image_ids, self.original_sizes),
        )

    def unpacked(self) -> Batch:
        """The batch, as views of the same memory."""
        counts = list(self.counts)
        targets: list[Target] = [
            {"labels": labels, "boxes": boxes}
            for labels, boxes in zip(
                torch.split(self.labels, counts),
                torch.split(self.boxes, counts),
                strict=True,
            )
        ]
        return Batch(self.images, self.sizes, targets, self.image_ids, self.original_sizes)


def collate(samples: Sequence[Sample], normalisation: Normalisation) -> PackedBatch:
    """Normalise, and pad to the largest height and width of the samples and no further.

    Args:
        samples: at least one.
        normalisation: channel statistics of values in 0..255.
    """
    height = max(sample.size[0] for sample in samples)
    width = max(sample.size[1] for sample in samples)
    mean = torch.tensor(normalisation.mean)[:, None, None]
    std = torch.tensor(normalisation.std)[:, None, None]
    images = torch.zeros(len(samples), 3, height, width)
    for canvas, sample in zip(images, samples, strict=True):
        valid = canvas[:, : sample.size[0], : sample.size[1]]
        valid.copy_(sample.image).sub_(mean).div_(std)
    targets = [target_of(sample) for sample in samples]
    return PackedBatch(
        images=images,
        boxes=torch.cat([target["boxes"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]),
        counts=tuple(len(target["labels"]) for target in targets),
        sizes=tuple(sample.size for sample in samples),
        image_ids=tuple(sample.image_id for sample in samples),
        original_sizes=tuple(sample.original_size for sample in samples),
    )
