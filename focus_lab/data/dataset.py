"""What every data set offers, and how a spec becomes one."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor

from focus_lab.data.coco import CocoDataset
from focus_lab.data.sample import Sample
from focus_lab.data.shapes import ShapesDataset
from focus_lab.errors import DataError
from focus_lab.specs.data import CocoData, DataSpec

SplitName = Literal["train", "val"]


class DetectionDataset(Protocol):
    """Images with boxes, by index 0 .. len - 1. Safe to send to other processes."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Contiguous label -> name."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Contiguous label -> id in the data set's own annotations."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content that defines the data set."""

    @property
    def repairs(self) -> dict[str, int]:
        """What was mended while reading, and how often; empty when nothing was."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every stored image, in pixels; nothing is decoded."""

    def __len__(self) -> int:
        """Number of images."""

    def load(self, index: int) -> Sample:
        """Decode image `index`. The tensors may be shared: nobody writes to them.

        Raises:
            DataError: if the image cannot be read.
        """

    def boxes_xyxy(self, index: int) -> Tensor:
        """Boxes of image `index` without crowd; nothing is decoded.

        float32 [n, 4], left, top, right, bottom in pixels of the stored image.
        """

    def labels(self, index: int) -> Tensor:
        """Contiguous classes of `boxes_xyxy(index)`, int64 [n]."""

    def coco_ground_truth(self) -> dict[str, Any]:
        """COCO instances dict with the data set's own category ids, crowd included."""


def build_dataset(spec: DataSpec, split: SplitName) -> DetectionDataset:
    """One split of a data set.

    Raises:
        DataError: if files are missing or broken; the message names the file and what to do.
    """
    if isinstance(spec, CocoData):
        return CocoDataset(spec, split)
    return ShapesDataset(spec, split)


def build_datasets(spec: DataSpec) -> tuple[DetectionDataset, DetectionDataset]:
    """Training and validation split, checked to have the same classes.

    Raises:
        DataError: as `build_dataset`, or if the classes of the splits differ.
    """
    train, val = build_dataset(spec, "train"), build_dataset(spec, "val")
    ours = dict(zip(train.category_ids, train.class_names, strict=True))
    theirs = dict(zip(val.category_ids, val.class_names, strict=True))
    if ours != theirs:
        differing = sorted(set(ours.items()) ^ set(theirs.items()))[:6]
        raise DataError(
            f"data.val: its categories differ from those of data.train, "
            f"got {differing} in only one of them; "
            "give both annotation files the same `categories` list"
        )
    return train, val
