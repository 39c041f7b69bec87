from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from focus_lab.data.sample import Sample
from focus_lab.specs.data import CocoData

torch.set_num_threads(1)

CATEGORIES = [{"id": 7, "name": "fish"}, {"id": 2, "name": "crab"}, {"id": 90, "name": "snail"}]


def annotation(
    number: int, image: int, category: int = 7, box: Any = (4, 5, 10, 8), **more: Any
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": 80,
        "iscrowd": 0,
        **more,
    }


def image(number: int, width: int = 40, height: int = 30, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "width": width, "height": height, **more}


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[..., CocoData]:
    """Writes a COCO folder whose two splits share one file and one image folder."""

    def write(
        images: list[dict[str, Any]],
        annotations: list[dict[str, Any]],
        categories: list[dict[str, Any]] | None = None,
        *,
        files: bool = True,
        **settings: Any,
    ) -> CocoData:
        (tmp_path / "images").mkdir()
        content = {
            "images": images,
            "annotations": annotations,
            "categories": CATEGORIES if categories is None else categories,
        }
        (tmp_path / "instances.json").write_text(json.dumps(content))
        rng = np.random.default_rng(0)
        for entry in images if files else []:
            size = (entry.get("height", 30), entry.get("width", 40), 3)
            pixels = rng.integers(0, 256, size, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / entry["file_name"])
        split = {"images": "images", "annotations": "instances.json"}
        return CocoData(kind="coco", root=str(tmp_path), train=split, val=split, **settings)

    return write


@pytest.fixture
def make_image() -> Callable[..., dict[str, Any]]:
    return image


@pytest.fixture
def make_annotation() -> Callable[..., dict[str, Any]]:
    return annotation


@pytest.fixture
def make_sample() -> Callable[..., Sample]:
    """A sample of random pixels; boxes default to one in the middle."""

    def make(height: int = 30, width: int = 40, boxes: Any = None, image_id: int = 1) -> Sample:
        found = torch.tensor(
            [[width * 0.25, height * 0.25, width * 0.75, height * 0.5]] if boxes is None else boxes
        ).reshape(-1, 4)
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        return Sample(pixels, found.float(), torch.arange(len(found)), image_id, (height, width))

    return make
