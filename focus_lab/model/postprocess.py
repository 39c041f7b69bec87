"""From predictions to detections in the pixels of the original images.

Shape legend: B images, Q queries, C classes, K detections before empty boxes are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.precision import at_least_float32


@dataclass(frozen=True)
class Detections:
    """Detections of one image, by falling score, in host memory."""

    scores: Tensor
    """float [n], in (0, 1)."""
    labels: Tensor
    """int64 [n], classes 0 .. C-1."""
    boxes_xyxy: Tensor
    """float [n, 4], pixels of the original image, inside it and not empty."""


@torch.no_grad()
def postprocess(
    pred_logits: Tensor,
    pred_boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
    num_detections: int,
) -> list[Detections]:
    """Take the best pairs of query and class and scale their boxes; duplicates stay.

    Args:
        pred_logits: [B, Q, C].
        pred_boxes: [B, Q, 4], (cx, cy, w, h) in [0, 1].
        sizes: valid (height, width) of each image as the network saw it.
        original_sizes: (height, width) of each image before it was resized.
        num_detections: most detections an image, clamped to Q x C; fewer where boxes are empty.

    Returns:
        One entry an image.
    """
    num_classes = pred_logits.shape[2]
    probabilities = at_least_float32(pred_logits).sigmoid().flatten(1)  # [B, Q*C]
    scores, places = probabilities.topk(
        min(num_detections, probabilities.shape[1]), dim=1
    )  # [B, K]
    labels = places % num_classes
    boxes = cxcywh_to_xyxy(at_least_float32(pred_boxes))
    boxes = boxes.gather(1, (places // num_classes)[..., None].expand(-1, -1, 4))  # [B, K, 4]

    # Two steps, network pixels first, because that is how the released numbers are rounded.
    pixels = boxes.new_tensor(sizes).flip(1)  # [B, 2] (w, h)
    limits = boxes.new_tensor(original_sizes).flip(1)
    scale = boxes.new_tensor(
        [
            (original[1] / size[1], original[0] / size[0])
            for size, original in zip(sizes, original_sizes, strict=True)
        ]
    )
    boxes = boxes * pixels.repeat(1, 2)[:, None] * scale.repeat(1, 2)[:, None]
    boxes = boxes.clamp(min=0.0).minimum(limits.repeat(1, 2)[:, None])
    keep = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)  # [B, K]

    return [
        Detections(image_scores[kept], image_labels[kept], image_boxes[kept])
        for image_scores, image_labels, image_boxes, kept in zip(
            scores.cpu(), labels.cpu(), boxes.cpu(), keep.cpu(), strict=True
        )
    ]
