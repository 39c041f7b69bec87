"""Focus-DETR: backbone, neck, token selector, encoder, proposals, decoder and heads in one module.

"Less is More: Focus Attention for Efficient DETR" (ICCV 2023). Shape legend: B images, N tokens of
all levels, Q queries, P denoising slots, C classes, d width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from focus_lab.model.attention_map import AttentionMap
from focus_lab.model.backbone import Backbone, ResidualFeatures, ResNetFeatures, TimmFeatures
from focus_lab.model.background_embedding import BackgroundEmbedding
from focus_lab.model.decoder import Decoder, DecoderLayer
from focus_lab.model.deformable_attention import DeformableAttention
from focus_lab.model.denoising import BatchShare, DenoisingBatch, DenoisingQueries
from focus_lab.model.encoder import Encoder, EncoderLayer
from focus_lab.model.encoder_auxiliary import EncoderAuxiliary, RefinedTokens
from focus_lab.model.feature_levels import FeatureLevels, flatten_levels
from focus_lab.model.feed_forward import Perceptron
from focus_lab.model.initialization import initialize_transformer
from focus_lab.model.neck import Neck
from focus_lab.model.output import DenoisingOutput, LayerOutput, ModelOutput, Target
from focus_lab.model.position import TokenPositions
from focus_lab.model.precision import at_least_float32, without_autocast
from focus_lab.model.proposals import Proposals, QueryStart
from focus_lab.model.scorings import build_token_selector
from focus_lab.model.scorings.decoder_attention import DecoderAttentionSelector
from focus_lab.model.token_selection import TokenSelector, TokensToScore
from focus_lab.model.tokens import take_tokens
from focus_lab.model.weight_files import load_backbone_weights, read_weights
from focus_lab.ops import Implementation, choose_implementation

if TYPE_CHECKING:
    from focus_lab.specs.model import Backbone as BackboneSpec
    from focus_lab.specs.model import ModelSpec


class EffectiveTokenSelection(TypedDict):
    """What the built model does, to be compared with what its cell asked for."""

    keep_ratio: float
    cascade: tuple[float, ...]
    level_keep_ratios: tuple[float, ...] | None


class FocusDETR(nn.Module):
    """The detector. `build_model` assembles it from a spec."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        position: TokenPositions,
        token_selector: TokenSelector | None,
        encoder: Encoder,
        proposals: Proposals,
        decoder: Decoder,
        class_heads: Sequence[nn.Linear],
        box_heads: Sequence[Perceptron],
        denoising: DenoisingQueries | None,
        encoder_auxiliary: EncoderAuxiliary | None = None,
        mask_padding_in_evaluation: bool = True,
    ) -> None:
        """Detector of the given parts.

        Args:
            backbone: images to feature maps.
            neck: feature maps to levels of width d.
            position: embedding of the levels' tokens.
            token_selector: None refines all tokens in every layer.
            encoder: tokens to memory.
            proposals: memory to query starts.
            decoder: queries to states.
            class_heads: d -> C, one a decoder layer and, last, one for the proposals.
            box_heads: d -> 4, likewise.
            denoising: None trains without denoising queries.
            encoder_auxiliary: heads on the encoder's layers, for training; None has none.
            mask_padding_in_evaluation: False ignores the images' sizes in evaluation, as the
                release does.
        """
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.position = position
        self.token_selector = token_selector
        self.encoder = encoder
        self.proposals = proposals
        self.decoder = decoder
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.denoising = denoising
        self.encoder_auxiliary = encoder_auxiliary
        self.mask_padding_in_evaluation = mask_padding_in_evaluation
        self.memory_format = torch.channels_last
        """Layout of the images. Convolutions follow that of their input, and this one is the
        faster, on CPUs too."""

    @property
    def implementation(self) -> Implementation:
        """How deformable attention is carried out."""
        return next(m.implementation for m in self.modules() if isinstance(m, DeformableAttention))

    @property
    def effective_token_selection(self) -> EffectiveTokenSelection:
        """The ratios that the forward pass uses."""
        if self.token_selector is None:
            cascade = (1.0,) * len(self.encoder.layers)
            return {"keep_ratio": 1.0, "cascade": cascade, "level_keep_ratios": None}
        return {
            "keep_ratio": self.token_selector.keep_ratio,
            "cascade": self.token_selector.cascade,
            "level_keep_ratios": self.token_selector.level_keep_ratios,
        }

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]] | None = None,
        targets: Sequence[Target] | None = None,
        share: BatchShare | None = None,
        image_ids: Sequence[int] | None = None,
    ) -> ModelOutput:
        """Detect.

        Args:
            images: [B, 3, H, W], normalised, then padded with zeros at the bottom and right.
            sizes: (height, width) of each image without its padding; None when nothing is padded.
                Boxes are shares of this size.
            targets: boxes of each image; in training they give denoising queries. In evaluation
                oracle scoring alone looks at them.
            share: of which batch the images are a part; None when they are the whole.
            image_ids: numbers >= 0 by which random scoring knows an image again; None counts.

        Returns:
            See `ModelOutput`.
        """
        maps, levels = self.pyramid(images, sizes)
        sizes = (_canvas(images),) * len(images) if sizes is None else sizes
        return self.detect(maps, levels, sizes, targets, share, image_ids)

    def pyramid(
        self, images: Tensor, sizes: Sequence[tuple[int, int]] | None
    ) -> tuple[list[Tensor], FeatureLevels]:
        """Everything before the token selector: feature levels [B, d, h, w] each, and their shapes.

        Args:
            images: as in `forward`.
            sizes: as in `forward`.
        """
        images = images.contiguous(memory_format=self.memory_format)
        maps: list[Tensor] = self.neck(self.backbone(images))
        masked = self.training or self.mask_padding_in_evaluation
        return maps, FeatureLevels.measure(maps, _canvas(images), sizes if masked else None)

    @contextlib.contextmanager
    def keeping(self, keep_ratio: float) -> Iterator[None]:
        """Within the context the encoder keeps another share of the tokens; weights stay.

        Args:
            keep_ratio: rho, in (0, 1].

        Raises:
            ValueError: the scoring is dense, so that no tokens are chosen.
        """
        if self.token_selector is None:
            raise ValueError("keep_ratio: dense scoring keeps all tokens; choose another scoring")
        own, self.token_selector.keep_ratio = self.token_selector.keep_ratio, keep_ratio
        try:
            yield
        finally:
            self.token_selector.keep_ratio = own

    def detect(
        self,
        maps: Sequence[Tensor],
        levels: FeatureLevels,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target] | None = None,
        share: BatchShare | None = None,
        image_ids: Sequence[int] | None = None,
    ) -> ModelOutput:
        """Everything behind the neck.

        Args:
            maps: feature levels, [B, d, h, w] each.
            levels: their shapes and valid regions.
            sizes: (height, width) of each image without its padding.
            targets: as in `forward`.
            share: as in `forward`.
            image_ids: as in `forward`.
        """
        tokens = flatten_levels(maps)  # [B, N, d]
        positions = self.position(levels)  # [1 or B, N, d]
        padding_mask = levels.padding_mask()
        token_boxes = self.proposals.boxes(levels, padding_mask)

        foreground_logits, selection = None, None
        if self.token_selector is not None:
            foreground_logits, selection = self.token_selector(
                TokensToScore(
                    features=tokens,
                    levels=levels,
                    padding_mask=padding_mask,
                    project=lambda: self.proposals.project(tokens + positions, token_boxes.usable),
                    strides=self.neck.strides,
                    sizes=tuple(sizes),
                    targets=targets,
                    image_ids=tuple(range(len(tokens)) if image_ids is None else image_ids),
                    seed=0 if share is None else share.seed,
                )
            )
        auxiliary = self.encoder_auxiliary if self.training else None
        refined_by: list[RefinedTokens] | None = None if auxiliary is None else []
        memory = self.encoder(
            tokens, positions, levels, padding_mask, selection, self.class_heads[-1], refined_by
        )
        start = self.proposals(memory, token_boxes, self.class_heads[-1], self.box_heads[-1])

        denoising = self._denoising_queries(targets, start.indices.shape[1], share)
        meta = None if denoising is None else denoising.meta
        slots = 0 if meta is None else meta.padded_size
        attention_map = None
        if self.training and isinstance(self.token_selector, DecoderAttentionSelector):
            attention_map = AttentionMap(levels, first_query=slots)
        layers = self._decode(memory, levels, padding_mask, start, denoising, attention_map)
        *aux_outputs, last = [_queries(layer, slice(slots, None)) for layer in layers]
        denoised: DenoisingOutput | None = None
        if slots:
            *aux_denoised, last_denoised = [_queries(layer, slice(None, slots)) for layer in layers]
            denoised = {**last_denoised, "aux_outputs": aux_denoised}
        return {
            **last,
            "aux_outputs": aux_outputs,
            "enc_outputs": {"pred_logits": start.pred_logits, "pred_boxes": start.pred_boxes},
            "enc_aux_outputs": [] if auxiliary is None else auxiliary(refined_by, token_boxes),
            "category_outputs": self._category_outputs(memory, start),
            "foreground_logits": foreground_logits,
            "decoder_attention": (
                None if attention_map is None else attention_map.of_tokens(padding_mask)
            ),
            "token_selection": selection,
            "level_shapes": levels.shapes,
            "strides": self.neck.strides,
            "denoising": denoised,
            "denoising_meta": meta,
        }

    def _decode(
        self,
        memory: Tensor,
        levels: FeatureLevels,
        padding_mask: Tensor | None,
        start: QueryStart,
        denoising: DenoisingBatch | None,
        attention_map: AttentionMap | None,
    ) -> list[LayerOutput]:
        """Predictions of every decoder layer, denoising slots first."""
        count = start.indices.shape[1]
        content = self.decoder.query_embedding.weight[:count].expand(
            memory.shape[0], -1, -1
        )  # [B, Q, d]
        references = start.pred_boxes.detach()
        if denoising is not None:
            content = torch.cat((denoising.content, content), dim=1)
            references = torch.cat((denoising.reference_logits.sigmoid(), references), dim=1)
        elif self.training and self.denoising is not None:
            # Without boxes the embedding would get no gradient, and distributed training waits
            # for one.
            content = content + 0.0 * self.denoising.label_embedding.weight.sum()
        decoded = self.decoder(
            content,
            references,
            memory,
            levels,
            padding_mask,
            self.box_heads,
            None if denoising is None else denoising.attention_mask,
            attention_map,
        )
        layers: list[LayerOutput] = []
        for number, (state, started_from) in enumerate(
            zip(decoded.states, decoded.references, strict=True)
        ):
            with without_autocast(state):
                logits = self.class_heads[number](at_least_float32(state))
            boxes = self.decoder.refine(state, started_from, self.box_heads[number])
            layers.append({"pred_logits": logits, "pred_boxes": boxes})
        return layers

    def _denoising_queries(
        self, targets: Sequence[Target] | None, count: int, share: BatchShare | None
    ) -> DenoisingBatch | None:
        """Denoising queries in front of `count` others; None outside training or without boxes."""
        if not self.training or self.denoising is None or targets is None:
            return None
        batch: DenoisingBatch | None = self.denoising(targets, count, share)
        return batch

    def _category_outputs(self, memory: Tensor, start: QueryStart) -> LayerOutput | None:
        """What trains an own category head, since its choice of tokens has no gradient."""
        if self.encoder.category_head is None:
            return None
        with without_autocast(memory):
            chosen = at_least_float32(take_tokens(memory, start.indices))
            return {
                "pred_logits": self.encoder.category_head(chosen),
                "pred_boxes": start.pred_boxes.detach(),
            }


def build_model(spec: ModelSpec, num_classes: int, *, load_backbone: bool = True) -> FocusDETR:
    """The detector that a spec describes, with fresh weights.

    Args:
        spec: all settings.
        num_classes: C.
        load_backbone: whether to read the backbone's weight file, if the spec names one; not needed
            when a checkpoint is loaded afterwards.

    Raises:
        SpecError: when the backbone cannot be built.
        WeightsError: when its weights do not fit.
        CompiledOpError: when the compiled operators are asked for and cannot be used.
    """
    implementation = choose_implementation(spec.ops.implementation)
    width, dual = spec.hidden_dim, spec.dual_attention
    backbone = build_backbone(spec.backbone, load=load_backbone)
    neck = Neck(
        backbone.channels, backbone.strides, width, spec.num_feature_levels, spec.norm_groups
    )
    token_selector = build_token_selector(spec)
    layer = (width, spec.num_heads, spec.num_feature_levels, spec.num_points, spec.dim_feedforward)
    encoder = Encoder(
        [
            EncoderLayer(
                *layer,
                dual_attention=dual.enabled,
                deformable_first=dual.order == "deformable_first",
                dropout=spec.dropout,
                implementation=implementation,
            )
            for _ in range(spec.num_encoder_layers)
        ],
        dual_attention_tokens=dual.num_tokens if dual.enabled else None,
        score_product=dual.score_product,
        value_source=spec.value_source,
    )
    decoder = Decoder(
        [
            DecoderLayer(*layer, dropout=spec.dropout, implementation=implementation)
            for _ in range(spec.num_decoder_layers)
        ],
        width,
        spec.num_queries,
        spec.inverse_sigmoid_eps,
    )
    proposals = Proposals(width, spec.num_queries, spec.proposals.base_size, spec.proposals.border)
    for part in (encoder, decoder, proposals):
        initialize_transformer(part)
    if dual.enabled and not dual.share_class_head:
        encoder.category_head = _class_head(width, num_classes, spec.class_prior)
    background = spec.token_selection.background_embedding
    if background.enabled:
        encoder.background_embedding = BackgroundEmbedding(width, background.size)
    denoising = None
    if spec.denoising.enabled:
        denoising = DenoisingQueries(
            num_classes,
            width,
            spec.denoising.num_queries,
            spec.denoising.label_noise,
            spec.denoising.box_noise,
            spec.inverse_sigmoid_eps,
        )
    heads, inner = spec.num_decoder_layers + 1, range(spec.num_encoder_layers - 1)
    auxiliary = None
    if spec.encoder_auxiliary:
        auxiliary = EncoderAuxiliary(
            [_class_head(width, num_classes, spec.class_prior) for _ in inner],
            [_box_head(width) for _ in inner],
        )
    # As its images; else every step would turn each kernel and each of its gradients around.
    backbone.to(memory_format=torch.channels_last)
    return FocusDETR(
        backbone=backbone,
        neck=neck,
        position=TokenPositions(
            width, spec.num_feature_levels, spec.position.temperature, spec.position.offset
        ),
        token_selector=token_selector,
        encoder=encoder,
        proposals=proposals,
        decoder=decoder,
        class_heads=[_class_head(width, num_classes, spec.class_prior) for _ in range(heads)],
        box_heads=[_box_head(width) for _ in range(heads)],
        denoising=denoising,
        encoder_auxiliary=auxiliary,
        mask_padding_in_evaluation=spec.mask_padding_in_evaluation,
    )


def build_backbone(spec: BackboneSpec, *, load: bool = True) -> Backbone:
    """The backbone that a spec describes, with its weights unless `load` is False.

    Raises:
        SpecError: when it cannot be built.
        WeightsError: when its weights do not fit.
    """
    if spec.kind == "residual":
        return ResidualFeatures(spec.widths)
    if spec.kind == "resnet":
        resnet = ResNetFeatures(spec.depth, spec.frozen_stages)
        if load and spec.weights is not None:
            load_backbone_weights(resnet, read_weights(spec.weights), "model.backbone.weights")
        return resnet
    features = TimmFeatures(spec.name, spec.out_indices)
    if load and spec.weights is not None:
        load_backbone_weights(
            features.network, read_weights(spec.weights), "model.backbone.weights"
        )
    features.freeze(spec.frozen_stages, spec.freeze_norm)
    return features


def _canvas(images: Tensor) -> tuple[int, int]:
    """Height and width of the padded images."""
    return (images.shape[-2], images.shape[-1])


def _class_head(width: int, num_classes: int, prior: float) -> nn.Linear:
    head = nn.Linear(width, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - prior) / prior))
    return head


def _box_head(width: int) -> Perceptron:
    head = Perceptron((width, width, width, 4))
    for parameter in head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return head


def _queries(layer: LayerOutput, which: slice) -> LayerOutput:
    return {
        "pred_logits": layer["pred_logits"][:, which],
        "pred_boxes": layer["pred_boxes"][:, which],
    }
