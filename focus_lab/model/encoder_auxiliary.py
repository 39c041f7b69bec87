"""Detection heads on the encoder's layers: Sparse DETR's auxiliary loss of the encoder.

With few refined tokens the encoder can be deep, and its middle layers learn from detecting on their
own. Used in training only.

Shape legend: B images (B' is 1 when nothing is padded), N tokens, k tokens of a layer, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from focus_lab.model.output import LayerOutput
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.proposals import TokenBoxes
from focus_lab.model.tokens import take_tokens

_NOTHING = -1e4
"""Class logit where there is no prediction: without loss, and matched to nothing."""


@dataclass(frozen=True)
class RefinedTokens:
    """What an encoder layer has made."""

    tokens: Tensor
    """[B, k, d]."""
    indices: Tensor | None
    """int64 [B, k], which tokens they are; None for all of them in order."""
    updated: Tensor | None
    """bool [B, k, 1], False where an image has fewer of its own; None where all have as many."""


class EncoderAuxiliary(nn.Module):
    """A class head and a box head for each encoder layer but the last.

    Args:
        class_heads: d -> C.
        box_heads: d -> 4, added to the logits of the tokens' own boxes.
    """

    def __init__(self, class_heads: Sequence[nn.Module], box_heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)

    def forward(self, layers: Sequence[RefinedTokens], boxes: TokenBoxes) -> list[LayerOutput]:
        """Predictions of every layer but the last, k queries each.

        Args:
            layers: of the encoder, in order.
            boxes: the tokens' own boxes.
        """
        outputs: list[LayerOutput] = []
        for layer, class_head, box_head in zip(
            layers[:-1], self.class_heads, self.box_heads, strict=True
        ):
            start, usable = boxes.logits, boxes.usable
            if layer.indices is not None:
                start, usable = (
                    take_tokens(start, layer.indices),
                    take_tokens(usable, layer.indices),
                )
            if layer.updated is not None:
                usable = usable & layer.updated
            with without_autocast(layer.tokens):
                tokens = at_least_float32(layer.tokens)
                outputs.append(
                    {
                        "pred_logits": class_head(tokens).masked_fill(~usable, _NOTHING),
                        "pred_boxes": (box_head(tokens) + start).sigmoid(),
                    }
                )
        return outputs
