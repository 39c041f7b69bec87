"""Elastic training: one detector for every keep ratio of a range.

Each step computes the largest ratio and one drawn smaller one, as slimmable networks do with widths
(Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", 2019, the sandwich
rule without its smallest part). Two passes a step and not three: a draw comes close to the smallest
ratio often enough, and a third pass would cost as much as it. The second pass is most of what a
step costs more, so it may be left out of all but every n-th. Backbone, neck and the scorer's labels
do not depend on the ratio, and the features of both passes are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from focus_lab.data.streams import Stream, generator
from focus_lab.model.denoising import BatchShare
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.output import ModelOutput, Target


def drawn_keep_ratio(least: float, largest: float, step: int, seed: int) -> float:
    """The smaller keep ratio of a step, in [least, largest): the same for every worker.

    Uniform in its logarithm: AP falls fastest where few tokens are left, so small ratios are
    practised as often as large ones.

    Args:
        least: smallest ratio of the range.
        largest: the ratio that every step has anyway.
        step: optimizer steps since the start of the training.
        seed: of the trial.
    """
    part = float(generator(Stream.KEEP_RATIO, step, 0, seed).random())
    return min(max(least * math.exp(part * math.log(largest / least)), least), largest)


class ElasticDetector(nn.Module):
    """A detector asked twice about the same features: at its own keep ratio and at a smaller one.

    Args:
        model: the detector; its ratio is the largest.
    """

    def __init__(self, model: FocusDETR) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target],
        share: BatchShare,
        image_ids: Sequence[int],
        keep_ratio: float | None,
    ) -> tuple[ModelOutput, ModelOutput | None]:
        """Detect at both ratios; see `FocusDETR.forward`.

        The noise of the denoising queries is that of `share`, so both outputs repair the same
        queries, slot by slot.

        Args:
            images: [B, 3, H, W].
            sizes: (height, width) of each image without its padding.
            targets: boxes of each image.
            share: of which batch the images are a part.
            image_ids: numbers of the images.
            keep_ratio: the smaller ratio; None in a step that has none.
        """
        maps, levels = self.model.pyramid(images, sizes)
        largest = self.model.detect(maps, levels, sizes, targets, share, image_ids)
        if keep_ratio is None:
            return largest, None
        with self.model.keeping(keep_ratio):
            smaller = self.model.detect(maps, levels, sizes, targets, share, image_ids)
        return largest, smaller
