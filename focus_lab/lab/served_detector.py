"""A detector as MLflow loads and serves it (`mlflow models serve`): the flavour `python_function`.

Named in a registered model as its loader: MLflow calls `_load_pyfunc`, no pickle is opened.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from focus_lab.data.images import decode_image
from focus_lab.errors import DataError
from focus_lab.training.prediction import Predictor

IMAGE, SCORE_THRESHOLD = "image", "score_threshold"
LEAST_SCORE = 0.3
"""Detections below are left out, unless a request says otherwise."""


class ServedDetector:
    """Answers requests.

    Args:
        predictor: the detector.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(
        self, requests: Any, params: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Detections of images.

        Args:
            requests: a data frame whose column `image` holds image files, as base64.
            params: `score_threshold`, in [0, 1].

        Returns:
            Of each image `boxes_xyxy` (pixels), `scores` and `labels` (class names), by falling
            score.

        Raises:
            DataError: an image cannot be decoded.
        """
        least = float((params or {}).get(SCORE_THRESHOLD, LEAST_SCORE))
        answers = []
        for number, text in enumerate(requests[IMAGE]):
            try:
                content = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError, TypeError) as error:
                raise DataError(
                    f"image {number}: is not base64, got {str(text)[:20]!r}; send the bytes of an "
                    "image file as base64"
                ) from error
            found = self._predictor(decode_image(io.BytesIO(content), f"image {number}"))
            shown = found.scores >= least
            names = self._predictor.class_names
            answers.append(
                {
                    "boxes_xyxy": found.boxes_xyxy[shown].tolist(),
                    "scores": found.scores[shown].tolist(),
                    "labels": [names[label] for label in found.labels[shown].tolist()],
                }
            )
        return answers


def _load_pyfunc(path: str) -> ServedDetector:
    return ServedDetector(Predictor(Path(path)))
