"""Hungarian matching of queries and boxes, for all outputs of a model at once.

Shape legend: L outputs (decoder layers and the two-stage head), B images, Q queries, C classes, M
boxes of an image (padded), K matches of one output: the sum over images of min(Q, number of boxes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from focus_lab.errors import NonFiniteLossError
from focus_lab.model.boxes import cxcywh_to_xyxy, pairwise_generalized_iou
from focus_lab.model.padded_targets import PaddedTargets

# Keeps the logarithms of the released class cost finite.
_LOG_EPS = 1e-8


@dataclass(frozen=True)
class Matches:
    """Which query answers for which box; in an image all outputs have as many matches."""

    images: Tensor
    """int64 [K], the image of each match."""
    queries: Tensor
    """int64 [L, K], the matched query, rising within an image."""
    targets: Tensor
    """int64 [L, K], the number of the matched box in its image."""


class HungarianMatcher:
    """Assigns queries to boxes at least cost, for each output and image on its own.

    The cost of a pair is class_cost x focal class cost + bbox_cost x L1 distance of (cx, cy, w, h)
    + giou_cost x negative generalised IoU.
    """

    def __init__(
        self,
        class_cost: float,
        bbox_cost: float,
        giou_cost: float,
        focal_alpha: float,
        focal_gamma: float,
    ) -> None:
        """Set the weights of the cost; focal_alpha and focal_gamma shape the class cost."""
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @torch.no_grad()
    def __call__(self, pred_logits: Tensor, pred_boxes: Tensor, targets: PaddedTargets) -> Matches:
        """Match all outputs; the costs go to the host in one transfer.

        Args:
            pred_logits: [L, B, Q, C].
            pred_boxes: [L, B, Q, 4], (cx, cy, w, h) in [0, 1].
            targets: boxes of the batch; images without boxes have no match.

        Returns:
            The matches, on the device of the predictions.

        Raises:
            NonFiniteLossError: a prediction is not finite, so that no assignment exists.
        """
        costs = self.costs(pred_logits, pred_boxes, targets).cpu().numpy()  # [L, B, Q, M]
        if not np.isfinite(costs).all():
            output, image, *_ = np.argwhere(~np.isfinite(costs))[0]
            raise NonFiniteLossError(
                f"matcher: the matching cost of output {output}, image {image} of the batch is not "
                "finite, got NaN or infinite predictions; lower training.optimizer.lr or look at "
                "the images of this batch"
            )
        num_outputs = len(costs)
        solved = torch.from_numpy(_assign(costs, targets.counts)).to(pred_logits.device)
        return Matches(solved[0], solved[1 : 1 + num_outputs], solved[1 + num_outputs :])

    @torch.no_grad()
    def costs(self, pred_logits: Tensor, pred_boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """Cost of every query for every box of its image, [L, B, Q, M]; any for padded boxes.

        Args:
            pred_logits: [L, B, Q, C].
            pred_boxes: [L, B, Q, 4], (cx, cy, w, h) in [0, 1].
            targets: boxes of the batch.
        """
        shape = (*pred_logits.shape[:3], targets.labels.shape[1])
        # Only the classes that occur in the image matter: gather first, compute on [L, B, Q, M].
        p = pred_logits.gather(3, targets.labels[None, :, None].expand(shape)).sigmoid()
        positive = self.focal_alpha * (1 - p).pow(self.focal_gamma) * (p + _LOG_EPS).log()
        negative = (1 - self.focal_alpha) * p.pow(self.focal_gamma) * (1 - p + _LOG_EPS).log()
        distance = torch.cdist(pred_boxes, targets.boxes.to(pred_boxes)[None], p=1.0)
        _, giou = pairwise_generalized_iou(
            cxcywh_to_xyxy(pred_boxes), cxcywh_to_xyxy(targets.boxes.to(pred_boxes))[None]
        )
        return (
            self.class_cost * (negative - positive)
            + self.bbox_cost * distance
            - self.giou_cost * giou
        )


def _assign(costs: npt.NDArray[np.floating], counts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Solve every output and image on the host.

    Args:
        costs: [L, B, Q, M].
        counts: true number of boxes of each image, at most M.

    Returns:
        [1 + 2L, K]: a row of images, L rows of queries and L rows of boxes.
    """
    num_outputs, _, num_queries, _ = costs.shape
    images = np.repeat(np.arange(len(counts)), np.minimum(counts, num_queries))
    solved = np.empty((1 + 2 * num_outputs, len(images)), dtype=np.int64)
    solved[0] = images
    for output in range(num_outputs):
        end = 0
        for image, count in enumerate(counts):
            if count:
                queries, boxes = linear_sum_assignment(costs[output, image, :, :count])
                start, end = end, end + len(queries)
                solved[1 + output, start:end] = queries
                solved[1 + num_outputs + output, start:end] = boxes
    return solved
