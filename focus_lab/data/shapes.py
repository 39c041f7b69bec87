"""Procedural scenes as a data set: deterministic from a seed, nothing is downloaded."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from focus_lab.data.ground_truth import GroundTruth
from focus_lab.data.outlines import CLASSES
from focus_lab.data.paint import paint_scene
from focus_lab.data.sample import Sample
from focus_lab.data.scene import Figure, fitted_tilt, lay_out, object_boxes
from focus_lab.data.streams import Stream, generator
from focus_lab.specs.base import fingerprint
from focus_lab.specs.data import ShapesData

GENERATOR_VERSION = 1
"""Raised whenever the same spec would give other scenes; part of the digest."""
CACHE_BYTES = 256 * 2**20
"""Painted scenes stay in memory when a whole split fits; others are painted each time."""

_SPLITS = {"train": 0, "val": 1}
_CONTENT = (
    "image_size",
    "num_classes",
    "objects",
    "object_size",
    "foreground_share",
    "distractors",
)


class ShapesDataset:
    """One split of the scenes of a spec; see `DetectionDataset` for the members.

    Scenes are painted on first use. Image ids are 1 .. n, category ids 1 .. C.

    Args:
        spec: the scenes.
        split: training and validation scenes are drawn from different streams.
    """

    def __init__(self, spec: ShapesData, split: Literal["train", "val"]) -> None:
        self.class_names = tuple(CLASSES)[: spec.num_classes]
        self.category_ids = tuple(range(1, spec.num_classes + 1))
        self.repairs: dict[str, int] = {}
        self._spec = spec
        self._split = _SPLITS[split]
        self._length = spec.num_train if split == "train" else spec.num_val
        self._tilt = fitted_tilt(spec)
        content = {name: getattr(spec, name) for name in (*_CONTENT, "contrast", "seed")}
        self.digest = fingerprint(
            {"generator": GENERATOR_VERSION, "split": split, "scenes": self._length, **content}
        )
        height, width = spec.image_size
        self._caches_images = self._length * height * width * 3 <= CACHE_BYTES
        self._images: dict[int, Tensor] = {}
        self._boxes: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """Number of scenes."""
        return self._length

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every scene."""
        return (self._spec.image_size,) * self._length

    def load(self, index: int) -> Sample:
        """Paint scene `index`, or take it from memory."""
        image = self._images.get(index)
        if image is None:
            image = self._paint(index)
            if self._caches_images:
                self._images[index] = image
        return Sample(
            image, self.boxes_xyxy(index), self.labels(index), index + 1, self._spec.image_size
        )

    def boxes_xyxy(self, index: int) -> Tensor:
        """Boxes of scene `index`, float32 [n, 4] in pixels; nothing is painted."""
        return self._objects(index)[0]

    def labels(self, index: int) -> Tensor:
        """Classes of scene `index`, int64 [n]."""
        return self._objects(index)[1]

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO instances dict of the split; the area of an object is that of its box."""
        truth = GroundTruth(self.category_ids, self.class_names)
        for index in range(self._length):
            height, width = self._spec.image_size
            truth.add_image(index + 1, f"{index + 1:06d}.png", height, width)
            boxes = self.boxes_xyxy(index).tolist()
            for (left, top, right, bottom), label in zip(
                boxes, self.labels(index).tolist(), strict=True
            ):
                truth.add_box(index + 1, label, (left, top, right - left, bottom - top))
        return truth.as_dict()

    def __getstate__(self) -> dict[str, Any]:
        """Without painted scenes: another process paints its own."""
        return {**self.__dict__, "_images": {}}

    def _figures(self, index: int) -> list[Figure]:
        if not 0 <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        return lay_out(self._spec, self._stream(Stream.LAYOUT, index), self._tilt)

    def _objects(self, index: int) -> tuple[Tensor, Tensor]:
        found = self._boxes.get(index)
        if found is None:
            boxes, labels = object_boxes(self._figures(index))
            found = self._boxes[index] = (torch.from_numpy(boxes), torch.from_numpy(labels))
        return found

    def _paint(self, index: int) -> Tensor:
        spec = self._spec
        pixels = paint_scene(
            self._figures(index), spec.image_size, spec.contrast, self._stream(Stream.PAINT, index)
        )
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # [3, H, W]

    def _stream(self, stream: Stream, index: int) -> np.random.Generator:
        return generator(stream, self._split, index, self._spec.seed)
