"""The detector that MLflow serves: what it takes, what it answers, what it refuses."""

from __future__ import annotations

import base64
import io
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from focus_lab.errors import DataError
from focus_lab.lab.served_detector import ServedDetector
from focus_lab.model.postprocess import Detections
from focus_lab.training.prediction import Predictor


class Fixed:
    """Finds the same in every image."""

    class_names = ("cat", "dog")

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor) -> Detections:
        self.seen.append(tuple(image.shape))
        boxes = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])
        return Detections(torch.tensor([0.75, 0.25]), torch.tensor([1, 0]), boxes)


def encoded(mode: str = "RGB", size: tuple[int, int] = (5, 4), kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def served() -> tuple[ServedDetector, Fixed]:
    fixed = Fixed()
    return ServedDetector(cast(Predictor, fixed)), fixed


def test_weak_detections_are_left_out_unless_they_are_asked_for() -> None:
    detector, _ = served()
    strong = {"boxes_xyxy": [[0.0, 1.0, 2.0, 3.0]], "scores": [0.75], "labels": ["dog"]}
    assert detector.predict({"image": [encoded()]}) == [strong]
    [all_of_them] = detector.predict({"image": [encoded()]}, {"score_threshold": 0.0})
    assert all_of_them["labels"] == ["dog", "cat"]


def test_images_of_any_mode_and_format_become_rgb() -> None:
    detector, fixed = served()
    detector.predict({"image": [encoded("L"), encoded("RGBA", (3, 2)), encoded(kind="JPEG")]})
    assert fixed.seen == [(3, 4, 5), (3, 2, 3), (3, 4, 5)]


@pytest.mark.parametrize("text", ["no base64!", "", base64.b64encode(b"no image").decode()])
def test_what_is_no_image_is_said(text: str) -> None:
    detector, _ = served()
    with pytest.raises(DataError, match=r"image 1: is not (base64|a readable image), got"):
        detector.predict({"image": [encoded(), text]})
