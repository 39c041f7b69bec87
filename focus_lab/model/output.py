"""What goes into the detector beside images, and what comes out: names, shapes, meanings.

Shape legend: B images, N tokens of the flattened feature pyramid (levels fine to coarse,
row-major), Q queries, C classes, P denoising slots, n boxes of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class Target(TypedDict):
    """The boxes of one image."""

    labels: Tensor
    """int64 [n], classes 0 .. C-1."""
    boxes: Tensor
    """float32 [n, 4], (cx, cy, w, h) in [0, 1] of the valid (unpadded) image."""


class LayerOutput(TypedDict):
    """Predictions of one decoder layer, or of the two-stage head."""

    pred_logits: Tensor
    """[B, Q, C], one independent logit a class; there is no background class."""
    pred_boxes: Tensor
    """[B, Q, 4], (cx, cy, w, h) in [0, 1] of the valid image."""


@dataclass(frozen=True)
class DenoisingMeta:
    """How the denoising slots are laid out: `groups` x (positives, then negatives)."""

    groups: int
    """Copies of the ground truth."""
    single_padding: int
    """Slots of one group: twice the largest number of boxes of an image."""
    padded_size: int
    """All slots in front of the queries: groups x single_padding."""


class DenoisingOutput(TypedDict):
    """Predictions for the P = meta.padded_size denoising slots; the last layer at the top."""

    pred_logits: Tensor
    """[B, P, C]."""
    pred_boxes: Tensor
    """[B, P, 4]."""
    aux_outputs: list[LayerOutput]
    """Decoder layers but the last, in order."""


@dataclass(frozen=True)
class SelectedTokens:
    """Which tokens the encoder refined (Sec. 3.2).

    Layers are nested: each takes a prefix of the largest. An image updates only its first
    `budgets[b]` tokens of a layer; those beyond are computed, because the batch shares one length,
    and then dropped.
    """

    indices: tuple[Tensor, ...]
    """Per encoder layer int64 [B, k_i], token numbers by falling foreground score; with ratios by
    level those within the budget of their level come first."""
    scores: Tensor
    """[B, K], the largest layer's scores, in its order; padding is at the batch's minimum."""
    counts: tuple[int, ...]
    """k_i, the tokens of encoder layer i."""
    budgets: tuple[int, ...]
    """Per image n_b = trunc(valid tokens x keep_ratio) + 1, at most the tokens there are; with
    ratios by level the sum over levels."""
    valid_counts: tuple[int, ...]
    """Per image the tokens that are not padding."""
    level_shapes: tuple[tuple[int, int], ...]
    """(height, width) of each feature level, fine to coarse."""

    @property
    def largest(self) -> Tensor:
        """int64 [B, K], the tokens of the layer that takes most: the first one of most cascades."""
        return self.indices[self.counts.index(max(self.counts))]

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Per encoder layer and image, how many tokens are updated: min(n_b, k_i)."""
        return tuple(tuple(min(budget, count) for budget in self.budgets) for count in self.counts)


class ModelOutput(LayerOutput):
    """Everything that training, evaluation and drawing read; the last decoder layer at the top."""

    aux_outputs: list[LayerOutput]
    """Decoder layers but the last, in order."""
    enc_outputs: LayerOutput
    """The two-stage head at the selected tokens, by falling class score."""
    enc_aux_outputs: list[LayerOutput]
    """Heads of the encoder's layers but the last, at the tokens of each; none outside training."""
    category_outputs: LayerOutput | None
    """The encoder's own category head at the tokens of `enc_outputs`, with their boxes (no
    gradient), so that a class loss can train it; None when it shares the two-stage class head."""
    foreground_logits: Tensor | None
    """[B, N], raw scores of all tokens, padding not masked; None where no scorer learns."""
    decoder_attention: Tensor | None
    """[B, N], how much the decoder's queries looked at each token, -1 at padding, no gradient; None
    unless a scorer learns to imitate it."""
    token_selection: SelectedTokens | None
    """The encoder's tokens; None with dense scoring."""
    level_shapes: tuple[tuple[int, int], ...]
    """(height, width) of each feature level, fine to coarse."""
    strides: tuple[int, ...]
    """Pixels between tokens of each feature level."""
    denoising: DenoisingOutput | None
    """Predictions for the denoising queries; None outside training or without boxes."""
    denoising_meta: DenoisingMeta | None
    """Layout of the denoising queries; None when `denoising` is."""
