"""The encoder: each layer refines only its foreground tokens (Sec. 3.3, Algorithm 1).

Shape legend: B images (B' is 1 when nothing is padded), N tokens, k tokens of a layer, K those of
the largest layer, L levels, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from focus_lab.model.background_embedding import BackgroundEmbedding
from focus_lab.model.deformable_attention import DeformableAttention, project_values
from focus_lab.model.encoder_auxiliary import RefinedTokens
from focus_lab.model.feature_levels import FeatureLevels, host_tensor, on_every_level
from focus_lab.model.feed_forward import FeedForward
from focus_lab.model.memory_order import memory_order
from focus_lab.model.output import SelectedTokens
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.self_attention import SelfAttention
from focus_lab.model.tokens import put_tokens, take_tokens
from focus_lab.ops import Implementation, LevelShapes


@dataclass(frozen=True)
class EncoderTokens:
    """The tokens that a layer works on, with what stays constant over the layers."""

    positions: Tensor
    """[B, k, d]."""
    references: Tensor
    """[B', k, L or 1, 2], centres as shares of each padded level."""
    scores: Tensor | None
    """[B, k], foreground logits; None where nothing is chosen by them."""

    def first(self, count: int) -> EncoderTokens:
        """The first `count` of them."""
        return EncoderTokens(
            self.positions[:, :count],
            self.references[:, :count],
            None if self.scores is None else self.scores[:, :count],
        )


class EncoderLayer(nn.Module):
    """Self-attention of fine-grained tokens, deformable attention, feed-forward; post-norm."""

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        *,
        dual_attention: bool,
        deformable_first: bool = False,
        dropout: float = 0.0,
        implementation: Implementation = "reference",
    ) -> None:
        """Layer of width `hidden_dim`; without `dual_attention` it has no self-attention at all.

        With it, self-attention comes first, as released, unless `deformable_first`.
        """
        super().__init__()
        self.deformable_first = deformable_first
        self.dual_attention: SelfAttention | None = None
        self.dual_attention_norm: nn.LayerNorm | None = None
        if dual_attention:
            self.dual_attention = SelfAttention(hidden_dim, num_heads, dropout)
            self.dual_attention_norm = nn.LayerNorm(hidden_dim)
        self.deformable_attention = DeformableAttention(
            hidden_dim, num_heads, num_levels, num_points, dropout, implementation
        )
        self.deformable_attention_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = FeedForward(hidden_dim, dim_feedforward, dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        tokens: Tensor,
        constants: EncoderTokens,
        choose: Callable[[Tensor], Tensor],
        value: Tensor,
        shapes: LevelShapes,
        widths_heights: Tensor,
    ) -> Tensor:
        """Refined tokens.

        Args:
            tokens: [B, k, d].
            constants: their positions, reference points and scores.
            choose: which of the tokens [B, k, d] attend to each other, int64 [B, T]; asked by dual
                attention when its turn comes.
            value: [B, N, H, d / H], projected values of all tokens.
            shapes: (height, width) of the levels.
            widths_heights: float32 [L, 2].

        Returns:
            [B, k, d].
        """
        if not self.deformable_first:
            tokens = self._attend_to_each_other(tokens, constants, choose)
        attended = self.deformable_attention(
            tokens + constants.positions, constants.references, value, shapes, widths_heights
        )
        tokens = self.deformable_attention_norm(tokens + attended)
        if self.deformable_first:
            tokens = self._attend_to_each_other(tokens, constants, choose)
        out: Tensor = self.feed_forward_norm(tokens + self.feed_forward(tokens))
        return out

    def _attend_to_each_other(
        self, tokens: Tensor, constants: EncoderTokens, choose: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Dual attention; without it, the tokens [B, k, d] themselves."""
        if self.dual_attention is None or self.dual_attention_norm is None:
            return tokens
        fine_grained = choose(tokens)
        chosen = take_tokens(tokens, fine_grained)  # [B, T, d]
        chosen_positions = take_tokens(constants.positions, fine_grained)
        chosen = self.dual_attention_norm(chosen + self.dual_attention(chosen, chosen_positions))
        return put_tokens(tokens, fine_grained, chosen)


class Encoder(nn.Module):
    """Encoder layers over nested sets of foreground tokens; others keep their neck feature."""

    def __init__(
        self,
        layers: Sequence[EncoderLayer],
        *,
        dual_attention_tokens: int | None,
        score_product: Literal["logits", "probabilities", "category"] = "logits",
        value_source: Literal["neck_features", "updated_tokens"] = "neck_features",
        category_head: nn.Module | None = None,
        background_embedding: BackgroundEmbedding | None = None,
    ) -> None:
        """Encoder of the given layers.

        Args:
            layers: in order.
            dual_attention_tokens: how many tokens of a layer attend to each other, clamped to those
                it has; None without dual attention.
            score_product: what is multiplied to find them: raw category and foreground logits as
                released (two negatives win), their sigmoids, or nothing: the category score alone.
            value_source: what deformable attention samples: the neck features in every layer
                (released), or the tokens as refined so far (Algorithm 1, line 10).
            category_head: an own head, d -> C, for the category score; None uses the one given to
                `forward`.
            background_embedding: added at the end to the tokens that the last layer leaves out.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.dual_attention_tokens = dual_attention_tokens
        self.score_product = score_product
        self.value_source = value_source
        self.category_head = category_head
        self.background_embedding = background_embedding

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        levels: FeatureLevels,
        padding_mask: Tensor | None,
        selection: SelectedTokens | None,
        class_head: nn.Module,
        refined_by: list[RefinedTokens] | None = None,
    ) -> Tensor:
        """The memory.

        Args:
            tokens: [B, N, d], neck features.
            positions: [B', N, d].
            levels: levels of the tokens.
            padding_mask: bool [B, N], True at padding; None when nothing is padded.
            selection: tokens of each layer; None refines all tokens in every layer.
            class_head: the two-stage class head, for the category score unless the encoder has its
                own.
            refined_by: takes what each layer has made, if given.

        Returns:
            [B, N, d]; there is no norm at the end.
        """
        widths_heights = levels.widths_heights()
        references = on_every_level(levels.centers(), levels.valid_ratios())
        first: Tensor | None = None
        if selection is None:
            current, constants = tokens, EncoderTokens(positions, references, None)
            may_update = None
        else:
            order = memory_order(selection)
            first = selection.largest.gather(1, order)
            current = take_tokens(tokens, first)
            constants = EncoderTokens(
                take_tokens(positions, first),
                take_tokens(references, first),
                None if self.score_product == "category" else selection.scores.gather(1, order),
            )
            may_update = _may_update(selection, tokens.device)

        fixed_values: tuple[Tensor, ...] | None = None
        if self.value_source == "neck_features":
            attentions = [layer.deformable_attention for layer in self._typed_layers()]
            fixed_values = project_values(attentions, tokens, padding_mask)

        memory = tokens
        # What earlier layers refined and this one does not, as suffixes of the largest set.
        resting: list[Tensor] = []
        for number, layer in enumerate(self._typed_layers()):
            count = current.shape[1] if selection is None else selection.counts[number]
            if count < current.shape[1]:
                resting.append(current[:, count:])
                current = current[:, :count]
            elif count > current.shape[1]:
                # A rising cascade: tokens that rest, or were never refined, join again.
                everything = torch.cat((current, *reversed(resting)), dim=1)
                current, resting = everything[:, :count], [everything[:, count:]]
            here = constants.first(count)
            if fixed_values is not None:
                value = fixed_values[number]
            else:
                value = project_values([layer.deformable_attention], memory, padding_mask)[0]
            refined = layer(
                current,
                here,
                partial(
                    self._fine_grained,
                    scores=here.scores,
                    category_head=self.category_head or class_head,
                ),
                value,
                levels.shapes,
                widths_heights,
            )
            current = (
                refined
                if may_update is None
                else torch.where(may_update[:, :count], refined, current)
            )
            if refined_by is not None:
                refined_by.append(
                    RefinedTokens(
                        current,
                        None if first is None else first[:, :count],
                        None if may_update is None else may_update[:, :count],
                    )
                )
            if self.value_source == "updated_tokens":
                memory = _written(memory, first, current)
        if self.value_source == "neck_features":
            memory = _written(tokens, first, torch.cat((current, *reversed(resting)), dim=1))
        if self.background_embedding is not None and selection is not None:
            memory = self.background_embedding(memory, levels, padding_mask, selection)
        return memory

    def _fine_grained(
        self, tokens: Tensor, scores: Tensor | None, category_head: nn.Module
    ) -> Tensor:
        """Positions of the dual attention's tokens among the layer's, [B, T], without gradient."""
        assert self.dual_attention_tokens is not None, "only dual attention asks"
        with torch.no_grad(), without_autocast(tokens):
            category = category_head(at_least_float32(tokens)).amax(-1)  # [B, k]
            if scores is not None:
                if self.score_product == "probabilities":
                    category, scores = category.sigmoid(), scores.sigmoid()
                category = category * scores
            count = min(self.dual_attention_tokens, tokens.shape[1])
            fine_grained: Tensor = category.topk(count, dim=1, sorted=True).indices
            return fine_grained

    def _typed_layers(self) -> list[EncoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, EncoderLayer)]


def _may_update(selection: SelectedTokens, device: torch.device) -> Tensor | None:
    """Where an image may write its token back, bool [B, K, 1]; None when everywhere."""
    longest = max(selection.counts)
    if min(selection.budgets) >= longest:
        return None
    budgets = host_tensor(selection.budgets, torch.int64, device)
    return (torch.arange(longest, device=device) < budgets[:, None]).unsqueeze(-1)


def _written(memory: Tensor, indices: Tensor | None, rows: Tensor) -> Tensor:
    """`memory` with its first chosen tokens replaced by `rows`; all of them without a choice."""
    if indices is None:
        return rows
    return put_tokens(memory, indices[:, : rows.shape[1]], rows)
