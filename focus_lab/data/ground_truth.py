"""The truth in COCO's own form, as pycocotools reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class GroundTruth:
    """Collects images and boxes into a COCO instances dict.

    Annotation ids are given out from 1: pycocotools takes a match with id 0 for no match.
    Segmentations are left out, because AP is computed on boxes.

    Args:
        category_ids: label -> id in the data set's annotations.
        class_names: label -> name.
    """

    def __init__(self, category_ids: Sequence[int], class_names: Sequence[str]) -> None:
        self._category_ids = tuple(category_ids)
        self._categories = [
            {"id": category, "name": name}
            for category, name in zip(category_ids, class_names, strict=True)
        ]
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add_image(self, image_id: int, file_name: str, height: int, width: int) -> None:
        """Add an image, with or without boxes to come."""
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )

    def add_box(
        self,
        image_id: int,
        label: int,
        box_xywh: tuple[float, float, float, float],
        area: float | None = None,
        crowd: bool = False,
    ) -> None:
        """Add a box in pixels of the stored image.

        Args:
            image_id: an image added before.
            label: contiguous class.
            box_xywh: left, top, width, height.
            area: of the object's mask, in square pixels; `None` takes the box's.
            crowd: a region of many objects, which AP neither rewards nor punishes.
        """
        self._annotations.append(
            {
                "id": len(self._annotations) + 1,
                "image_id": image_id,
                "category_id": self._category_ids[label],
                "bbox": list(box_xywh),
                "area": box_xywh[2] * box_xywh[3] if area is None else area,
                "iscrowd": int(crowd),
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """The dict: info, licenses, images, annotations, categories."""
        return {
            "info": {},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
