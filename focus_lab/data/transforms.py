"""Training and evaluation transforms of the released recipe, drawn from one given generator."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from focus_lab.data.sample import Sample
from focus_lab.specs.data import Augmentation, EvaluationTransform

_LEAST_SIDE = 1e-5
"""Boxes of less width or height, in pixels, are dropped after cropping; as released."""


def resized_size(
    height: int, width: int, shortest: int, longest: int | None = None
) -> tuple[int, int]:
    """(height, width) with the given shortest side, kept in proportion, rounded half up.

    Args:
        height: pixels.
        width: pixels.
        shortest: wanted length of the shorter side.
        longest: if the longer side would exceed it, the image is scaled to fit it instead; `None`
            sets no limit.
    """
    scale = shortest / min(height, width)
    new_height, new_width = (
        (float(shortest), scale * width) if height < width else (scale * height, float(shortest))
    )
    if longest is not None and max(new_height, new_width) > longest:
        shrink = longest / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


class TrainTransform:
    """Flip, then resize, or resize + crop + resize; optionally a random order of the channels.

    Args:
        augmentation: probabilities and sizes.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        self._augmentation = augmentation

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """A transformed copy; boxes that a crop removed are gone, maybe all of them."""
        recipe = self._augmentation
        if rng.random() < recipe.flip:
            sample = flipped(sample)
        if rng.random() < recipe.crop.probability:
            sample = _resized_by(sample, recipe.crop.sizes, None, rng)
            sample = _randomly_cropped(sample, recipe.crop.crop_size, rng)
        sample = _resized_by(sample, recipe.sizes, recipe.max_size, rng)
        if recipe.permute_channels:
            sample = dataclasses.replace(sample, image=sample.image[rng.permutation(3).tolist()])
        return _clean(sample)


class EvalTransform:
    """Resize without randomness; boxes that touch the edge are kept.

    Args:
        evaluation: the size.
    """

    def __init__(self, evaluation: EvaluationTransform) -> None:
        self._evaluation = evaluation

    def __call__(self, sample: Sample) -> Sample:
        """A transformed copy with boxes inside the image."""
        return _clean(resized(sample, *self.size(*sample.size)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the model sees an image of this size."""
        if self._evaluation.size is None:
            return height, width
        return resized_size(height, width, self._evaluation.size, self._evaluation.max_size)


def flipped(sample: Sample) -> Sample:
    """Mirrored left to right."""
    boxes = functional.horizontal_flip(_as_boxes(sample))
    return _with(sample, functional.horizontal_flip(sample.image), boxes)


def resized(sample: Sample, height: int, width: int) -> Sample:
    """Resampled bilinearly, antialiased when it shrinks; the same size costs nothing."""
    if (height, width) == sample.size:
        return sample
    image = functional.resize(sample.image, [height, width], antialias=True)
    return _with(sample, image, functional.resize(_as_boxes(sample), [height, width]))


def cropped(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A window of the image; boxes are clipped to it, and dropped when nothing of them is left."""
    image = functional.crop(sample.image, top, left, height, width)
    return _clean(
        _with(sample, image, functional.crop(_as_boxes(sample), top, left, height, width))
    )


def _resized_by(
    sample: Sample, sides: tuple[int, ...], longest: int | None, rng: np.random.Generator
) -> Sample:
    """Resized to one of the shortest sides; unchanged when there is none."""
    if not sides:
        return sample
    shortest = sides[int(rng.integers(len(sides)))]
    return resized(sample, *resized_size(*sample.size, shortest, longest))


def _randomly_cropped(sample: Sample, limits: tuple[int, int], rng: np.random.Generator) -> Sample:
    """A window with sides drawn from the limits, or the image's side if that is shorter."""
    window = [
        int(rng.integers(min(side, limits[0]), min(side, limits[1]) + 1)) for side in sample.size
    ]
    corner = [
        int(rng.integers(side - part + 1)) for side, part in zip(sample.size, window, strict=True)
    ]
    return cropped(sample, *corner, *window)


def _as_boxes(sample: Sample) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        sample.boxes_xyxy, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=sample.size
    )


def _with(sample: Sample, image: Tensor, boxes: Tensor) -> Sample:
    return dataclasses.replace(sample, image=image, boxes_xyxy=boxes.as_subclass(torch.Tensor))


def _clean(sample: Sample) -> Sample:
    """Boxes clipped to the image; degenerate ones and their labels dropped."""
    height, width = sample.size
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum(sample.boxes_xyxy.clamp(min=0), limits)
    kept = (boxes[:, 2:] - boxes[:, :2] > _LEAST_SIDE).all(dim=1)
    return dataclasses.replace(sample, boxes_xyxy=boxes[kept], labels=sample.labels[kept])
