"""The decoder: queries look at the memory around boxes that each layer refines (DINO).

Shape legend: B images, Q queries (denoising slots first), L levels, d width, H heads, S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from focus_lab.model.attention_map import AttentionMap
from focus_lab.model.boxes import inverse_sigmoid
from focus_lab.model.deformable_attention import DeformableAttention, project_values
from focus_lab.model.feature_levels import FeatureLevels, on_every_level
from focus_lab.model.feed_forward import FeedForward, Perceptron
from focus_lab.model.position import box_embedding
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.self_attention import SelfAttention
from focus_lab.ops import Implementation, LevelShapes


@dataclass(frozen=True)
class DecoderStates:
    """What the prediction heads read, one entry a layer."""

    states: tuple[Tensor, ...]
    """[B, Q, d] each, after the shared output norm."""
    references: tuple[Tensor, ...]
    """[B, Q, 4] each, the boxes that the layer started from, with gradient into the layer before
    (look forward twice)."""


class DecoderLayer(nn.Module):
    """Self-attention of queries, deformable attention to the memory, feed-forward; post-norm."""

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        implementation: Implementation = "reference",
    ) -> None:
        """Layer of width `hidden_dim`."""
        super().__init__()
        self.self_attention = SelfAttention(hidden_dim, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(hidden_dim)
        self.deformable_attention = DeformableAttention(
            hidden_dim, num_heads, num_levels, num_points, dropout, implementation
        )
        self.deformable_attention_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = FeedForward(hidden_dim, dim_feedforward, dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        references: Tensor,
        value: Tensor,
        shapes: LevelShapes,
        widths_heights: Tensor,
        blocked: Tensor | None,
        attention_map: AttentionMap | None = None,
    ) -> Tensor:
        """Refined queries.

        Args:
            queries: [B, Q, d].
            positions: [B, Q, d], embedding of the reference boxes.
            references: [B, Q, L or 1, 4], boxes as shares of each padded level.
            value: [B, S, H, d / H], projected values of the memory.
            shapes: (height, width) of the levels.
            widths_heights: float32 [L, 2].
            blocked: bool [Q, Q], True where a query (row) may not see another (column).
            attention_map: where to write down what is looked at; None does not.

        Returns:
            [B, Q, d].
        """
        attended = self.self_attention(queries, positions, blocked)
        queries = self.self_attention_norm(queries + attended)
        attended = self.deformable_attention(
            queries + positions, references, value, shapes, widths_heights, attention_map
        )
        queries = self.deformable_attention_norm(queries + attended)
        out: Tensor = self.feed_forward_norm(queries + self.feed_forward(queries))
        return out


class Decoder(nn.Module):
    """Decoder layers with learnt query contents; the boxes come from the two-stage head."""

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        hidden_dim: int,
        num_queries: int,
        inverse_sigmoid_eps: float = 1e-3,
    ) -> None:
        """Decoder of the given layers.

        Args:
            layers: in order.
            hidden_dim: d.
            num_queries: learnt query contents; an image with fewer tokens uses the first of them.
            inverse_sigmoid_eps: clamp of the inverse sigmoid.
        """
        super().__init__()
        self.hidden_dim = hidden_dim
        self.inverse_sigmoid_eps = inverse_sigmoid_eps
        self.layers = nn.ModuleList(layers)
        self.query_embedding = nn.Embedding(num_queries, hidden_dim)
        self.reference_head = Perceptron((2 * hidden_dim, hidden_dim, hidden_dim))
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        memory: Tensor,
        levels: FeatureLevels,
        padding_mask: Tensor | None,
        box_heads: Sequence[nn.Module],
        blocked: Tensor | None = None,
        attention_map: AttentionMap | None = None,
    ) -> DecoderStates:
        """States and references of all layers.

        Args:
            queries: [B, Q, d], contents.
            references: [B, Q, 4], (cx, cy, w, h) in [0, 1] of the valid image, without gradient.
            memory: [B, S, d].
            levels: levels of the memory.
            padding_mask: bool [B, S], True at padding; None when nothing is padded.
            box_heads: one a layer, d -> 4, applied here before the output norm.
            blocked: bool [Q, Q], True where a query may not see another; None lets all see all.
            attention_map: where all layers write down what they look at; None does not.
        """
        layers = [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
        widths_heights = levels.widths_heights()
        valid_ratios = levels.valid_ratios()
        values = project_values(
            [layer.deformable_attention for layer in layers], memory, padding_mask
        )
        states: list[Tensor] = []
        started_from = [references]
        for number, layer in enumerate(layers):
            on_levels = on_every_level(references, valid_ratios)  # [B, Q, L or 1, 4]
            positions = self.reference_head(box_embedding(on_levels[:, :, 0], self.hidden_dim))
            queries = layer(
                queries,
                positions,
                on_levels,
                values[number],
                levels.shapes,
                widths_heights,
                blocked,
                attention_map,
            )
            states.append(self.norm(queries))
            if number + 1 < len(layers):
                refined = self.refine(queries, references, box_heads[number])
                started_from.append(refined)
                references = refined.detach()
        return DecoderStates(tuple(states), tuple(started_from))

    def refine(self, states: Tensor, references: Tensor, box_head: nn.Module) -> Tensor:
        """Boxes [B, Q, 4] moved by a head's output for `states` [B, Q, d], at least float32."""
        with without_autocast(states):
            offsets = box_head(at_least_float32(states))
            refined: Tensor = offsets + inverse_sigmoid(references, self.inverse_sigmoid_eps)
            return refined.sigmoid()
