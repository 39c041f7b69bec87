"""Predict: detections of single images by the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from focus_lab.data.batch import collate
from focus_lab.data.sample import Sample
from focus_lab.data.transforms import EvalTransform
from focus_lab.model.postprocess import Detections
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.training import ComputeSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.detector import load_model
from focus_lab.training.environment import choose_device
from focus_lab.training.evaluation import detect


class Predictor:
    """A trained detector for images one by one, on the GPU if there is one.

    Args:
        path: a checkpoint; its averaged weights are used if it has them.

    Raises:
        WeightsError: it is not a checkpoint of focus_lab.
    """

    def __init__(self, path: Path) -> None:
        saved = checkpoints.load(path)
        self._spec = TrialSpec.model_validate(saved.spec)
        self._device = choose_device(ComputeSpec())
        self._model = load_model(saved, self._device)
        self.class_names = tuple(saved.class_names)

    def __call__(self, image: Tensor) -> Detections:
        """Detections by falling score, boxes in pixels of the image.

        Args:
            image: uint8 [3, H, W], RGB.
        """
        height, width = int(image.shape[1]), int(image.shape[2])
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
        sample = EvalTransform(self._spec.data.evaluation)(
            Sample(image, *nothing, image_id=0, original_size=(height, width))
        )
        batch = collate([sample], self._spec.data.normalisation).unpacked().to(self._device)
        with torch.inference_mode():
            output = self._model(batch.images, batch.sizes, image_ids=batch.image_ids)
            return detect(output, batch, self._spec.model.num_detections)[0]
