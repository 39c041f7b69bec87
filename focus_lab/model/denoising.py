"""Contrastive denoising queries (DINO): noised ground truth for the decoder to repair in training.

Each of G groups holds M positives (little noise), then M negatives (more noise), where M is the
largest number of boxes of an image; image b uses the first n_b slots of each half. Unused slots are
zero and, as released, not masked.

Shape legend: B images, G groups, M boxes of an image (padded), T boxes of the batch, P = 2GM
denoising slots, Q decoder queries, d hidden_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focus_lab.model.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from focus_lab.model.output import DenoisingMeta, Target
from focus_lab.model.padded_targets import pad_targets


@dataclass(frozen=True)
class NoiseDraws:
    """The randomness of one batch: an entry a noised box, 2G copies of all T boxes.

    Entry copy * T + box, boxes running over images; even copies are positives, odd ones negatives.
    """

    u_label: Tensor
    """[2GT], uniform in [0, 1): the label flips where this is below half the label noise."""
    new_label: Tensor
    """int64 [2GT], uniform over classes: the label where it flips."""
    sign: Tensor
    """[2GT, 4], -1 or 1: direction in which each corner coordinate (x1, y1, x2, y2) moves."""
    part: Tensor
    """[2GT, 4], uniform in [0, 1): how far it moves in half box sizes; negatives go 1 farther."""


def draw_noise(
    count: int, num_classes: int, generator: torch.Generator | None = None
) -> NoiseDraws:
    """Draw for `count` noised boxes on the CPU, whatever the device; None is torch's generator."""
    return NoiseDraws(
        u_label=torch.rand(count, generator=generator),
        new_label=torch.randint(num_classes, (count,), generator=generator),
        sign=torch.randint(2, (count, 4), generator=generator) * 2.0 - 1.0,
        part=torch.rand(count, 4, generator=generator),
    )


@dataclass(frozen=True)
class BatchShare:
    """Where the images of one forward pass stand in the whole batch of an optimizer step.

    Groups and noise are those of the whole batch, so that parts of it, on other workers or one
    after the other, repair the very queries that they would repair together.
    """

    boxes_before: int
    """Boxes of the whole batch before the first one here."""
    boxes: int
    """Boxes of the whole batch."""
    most_boxes: int
    """Largest number of boxes of an image of the whole batch."""
    seed: int
    """Of the noise of this step."""


@dataclass(frozen=True)
class DenoisingBatch:
    """Denoising queries of a batch, to be put in front of the decoder's queries."""

    content: Tensor
    """[B, P, d], embedded noised labels; zero in unused slots."""
    reference_logits: Tensor
    """[B, P, 4], inverse sigmoid of the noised (cx, cy, w, h); zero in unused slots."""
    attention_mask: Tensor
    """bool [P+Q, P+Q], True = the row may not attend to the column."""
    meta: DenoisingMeta
    """Layout of the slots."""


class DenoisingQueries(nn.Module):
    """Builds denoising queries from targets; owns the embedding of the noised labels."""

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
        inverse_sigmoid_eps: float,
        noise_source: Callable[[int, int, torch.Generator | None], NoiseDraws] = draw_noise,
    ) -> None:
        """Set up the embedding (standard normal) and the amount of noise.

        Args:
            num_classes: rows of the label embedding.
            hidden_dim: width of the queries, d.
            num_queries: wanted number of positives an image; G = max(1, num_queries // M).
            label_noise: labels are redrawn with half of this probability.
            box_noise: largest move of a positive's corner, in half box sizes.
            inverse_sigmoid_eps: clamp of the inverse sigmoid.
            noise_source: `(count, num_classes, generator) -> NoiseDraws`.
        """
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes, hidden_dim)
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.noise_source = noise_source

    def forward(
        self,
        targets: Sequence[Target],
        num_decoder_queries: int,
        share: BatchShare | None = None,
    ) -> DenoisingBatch | None:
        """Noise the boxes of a batch.

        Args:
            targets: boxes of each image, on the module's device.
            num_decoder_queries: Q, for the attention mask.
            share: of which batch the images are a part; None when they are the whole, with noise
                from torch's global generator.

        Returns:
            The denoising queries, or None when no image of the whole batch has a box.
        """
        padded = pad_targets(targets)
        here, width = padded.total, padded.width if share is None else share.most_boxes
        if width == 0:
            return None
        weight = self.label_embedding.weight
        groups = max(1, self.num_queries // width)
        meta = DenoisingMeta(
            groups=groups, single_padding=2 * width, padded_size=groups * 2 * width
        )
        copies = torch.arange(2 * groups, device=weight.device)
        u_label, new_label, sign, part = self._draws(2 * groups, here, share)

        labels = padded.labels[padded.images, padded.positions].repeat(2 * groups)  # [2GT]
        flips = u_label < 0.5 * self.label_noise
        content = self.label_embedding(torch.where(flips, new_label, labels))

        boxes = padded.boxes[padded.images, padded.positions].to(weight.dtype)  # [T, 4]
        distance = part.to(weight.dtype) + (copies % 2).repeat_interleave(here)[:, None]
        half_size = (boxes[:, 2:] * 0.5).repeat(2 * groups, 2)  # [2GT, 4]
        moves = sign.to(weight.dtype) * distance * half_size * self.box_noise
        corners = cxcywh_to_xyxy(boxes).repeat(2 * groups, 1) + moves
        # Corners of negatives may swap sides; a negative width is clamped like any other.
        noised = xyxy_to_cxcywh(corners.clamp(0.0, 1.0))
        logits = inverse_sigmoid(noised, self.inverse_sigmoid_eps)

        images = padded.images.repeat(2 * groups)  # [2GT]
        slots = (copies[:, None] * width + padded.positions).flatten()  # [2GT]
        shape = (len(targets), meta.padded_size)
        return DenoisingBatch(
            content=_scatter(content, images, slots, shape),
            reference_logits=_scatter(logits, images, slots, shape),
            attention_mask=_attention_mask(meta, num_decoder_queries, weight.device),
            meta=meta,
        )

    def _draws(self, copies: int, here: int, share: BatchShare | None) -> tuple[Tensor, ...]:
        """Fields of `NoiseDraws` for the boxes that are here, [copies * here, ...] each."""
        embedding = self.label_embedding
        generator = None if share is None else torch.Generator().manual_seed(share.seed)
        total, first = (here, 0) if share is None else (share.boxes, share.boxes_before)
        drawn = self.noise_source(copies * total, embedding.num_embeddings, generator)
        return tuple(
            draws.view(copies, total, *draws.shape[1:])[:, first : first + here]
            .flatten(0, 1)
            .to(embedding.weight.device)
            for draws in (drawn.u_label, drawn.new_label, drawn.sign, drawn.part)
        )


def _scatter(values: Tensor, images: Tensor, slots: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put values [2GT, D] to their image and slot, zeros elsewhere: [B, P, D]."""
    return values.new_zeros((*shape, values.shape[1])).index_put((images, slots), values)


def _attention_mask(meta: DenoisingMeta, num_decoder_queries: int, device: torch.device) -> Tensor:
    """Mask of the decoder's self-attention, bool [P+Q, P+Q], True = may not attend.

    A group is seen by itself only: queries must not peek at the ground truth, groups not at each
    other.
    """
    slots = torch.arange(meta.padded_size + num_decoder_queries, device=device)
    group = (slots // meta.single_padding).clamp(max=meta.groups)  # queries are "group" G
    hidden = slots < meta.padded_size
    return (group[:, None] != group[None, :]) & hidden[None, :]
