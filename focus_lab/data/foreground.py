"""How much of an image lies in boxes: the share that an AP-against-keep-ratio curve bends at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from focus_lab.data.dataset import DetectionDataset

STRIDES = (8, 16, 32, 64)
"""Strides of the released four-level feature pyramid, in pixels."""


def covered_cells(
    boxes_xyxy: NDArray[np.floating], rows: int, columns: int, stride: int
) -> NDArray[np.bool_]:
    """Which cells of a grid have their centre in any box.

    Args:
        boxes_xyxy: [n, 4] in pixels.
        rows: cells down.
        columns: cells across.
        stride: side of a cell in pixels; 1 asks for pixels.

    Returns:
        bool [rows, columns].
    """
    covered = np.zeros((rows, columns), dtype=np.bool_)
    # The centre (i + .5) * stride lies in [low, high) for i from ceil(low / stride - .5) on.
    edges = np.ceil(np.asarray(boxes_xyxy, dtype=np.float64) / stride - 0.5).astype(np.int64)
    for left, top, right, bottom in edges.clip(min=0).tolist():
        covered[top:bottom, left:right] = True
    return covered


def token_share(
    boxes_xyxy: NDArray[np.floating], height: int, width: int, strides: Sequence[int] = STRIDES
) -> float:
    """Share of the feature tokens of an image, over all strides, whose centre lies in any box.

    Boxes are in pixels of the (height, width) image. Each level has ceil(side / stride) tokens a
    side.
    """
    inside = total = 0
    for stride in strides:
        covered = covered_cells(boxes_xyxy, -(-height // stride), -(-width // stride), stride)
        inside += int(covered.sum())
        total += covered.size
    return inside / total


def foreground_share(
    dataset: DetectionDataset,
    strides: Sequence[int] = STRIDES,
    resize: Callable[[int, int], tuple[int, int]] | None = None,
) -> float:
    """Mean over the images of the share of feature tokens whose centre lies in any box.

    Reads boxes and sizes only, no image. Print it beside every curve over the keep ratio: the knee
    lies near it.

    Args:
        dataset: the images.
        strides: strides of the feature levels, in pixels.
        resize: (height, width) -> size at which the model sees the image; `None` keeps the stored
            size.

    Returns:
        A share in [0, 1].
    """
    shares = []
    for index, (height, width) in enumerate(dataset.sizes):
        new_height, new_width = resize(height, width) if resize else (height, width)
        scale = np.array([new_width / width, new_height / height] * 2)
        boxes = dataset.boxes_xyxy(index).numpy() * scale
        shares.append(token_share(boxes, new_height, new_width, strides))
    return float(np.mean(shares)) if shares else 0.0
