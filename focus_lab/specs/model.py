"""The model's spec: every number that the paper or its code fixes is a field.

Defaults are the released values. Sections and equations are those of "Less is More: Focus Attention
for Efficient DETR" (ICCV 2023).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from focus_lab.specs.base import (
    AnyFloat,
    FromList,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Ratio,
    Spec,
    added,
)
from focus_lab.specs.cascade import Cascade, layer_shares, mean_share

Layers = Annotated[int, Field(gt=0, le=64)]
"""Layers of a transformer: each has shares, heads and losses of its own."""
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Channels; a layer's weights grow with their square."""
Count = Annotated[int, Field(gt=0, le=1_000_000)]
"""Queries or tokens of an image."""


class ResNetBackbone(Spec):
    """torchvision's ResNet with frozen batch norm; C3, C4, C5 (strides 8, 16, 32) feed the neck."""

    kind: Literal["resnet"]
    depth: Literal[18, 34, 50, 101, 152] = 50
    """Number of layers."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 1
    """How many stages stay as they are, counted from the stem: 1 freezes the stem, 0 nothing."""
    weights: str | None = None
    """Path of a state dict (torchvision's names, .pth or .safetensors); null starts at random."""


class TimmBackbone(Spec):
    """Any `timm` feature extractor by name; nothing is downloaded."""

    kind: Literal["timm"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
    """timm's model name, for example `efficientnet_lite0` or `swin_tiny_patch4_window7_224`."""
    out_indices: Annotated[tuple[NonNegativeInt, ...], FromList] = (2, 3, 4)
    """Which of timm's feature stages feed the neck, fine to coarse."""
    frozen_stages: NonNegativeInt = 0
    """How many of timm's leading feature stages stay as they are, the stem first; 0 nothing."""
    freeze_norm: bool = True
    """Whether batch norm keeps the statistics of the weights (usual with small batches)."""
    weights: str | None = None
    """Path of a state dict, or `package:MODULE` for weights that an installed package ships."""


class ResidualBackbone(Spec):
    """A small residual network with batch norm for demos and tests: a stage a stride, 2 to 32."""

    kind: Literal["residual"]
    widths: Annotated[tuple[Width, ...], FromList, Field(min_length=5, max_length=5)] = (
        24,
        32,
        64,
        96,
        128,
    )
    """Channels at strides 2, 4, 8, 16 and 32; the last three feed the neck."""


Backbone = Annotated[ResNetBackbone | TimmBackbone | ResidualBackbone, Field(discriminator="kind")]


class Position(Spec):
    """Sine position embedding of the feature levels.

    The released 12-epoch and Swin models use (10000, -0.5), the 24- and 36-epoch R50 models
    (20, 0): a converter must set it per checkpoint.
    """

    temperature: PositiveFloat = 10000.0
    """Base of the geometric series of wavelengths."""
    offset: AnyFloat = -0.5
    """Added to the 1-based row and column numbers before they are normalised."""


class FocusScoring(Spec):
    """The released scorer: a logit a token, coarse levels modulating finer ones (Sec. 3.2)."""

    kind: Literal["focus"]


class DenseScoring(Spec):
    """No scorer: every layer refines every token (DINO); needs keep_ratio 1, a cascade of ones."""

    kind: Literal["dense"]


class ObjectnessScoring(Spec):
    """A head of its own on each token, trained on boxes without size ranges by level."""

    kind: Literal["objectness"]


class DecoderAttentionScoring(Spec):
    """Sparse DETR's scorer: it learns which tokens the decoder's cross-attention looks at.

    The pseudo-labels are the best `keep_ratio` of the tokens by attention; `loss.foreground_weight`
    weighs the binary cross-entropy, 1 in Sparse DETR.
    """

    kind: Literal["decoder_attention"]


class FeatureNormScoring(Spec):
    """No learning: the length of a token's neck feature."""

    kind: Literal["feature_norm"]


class RandomScoring(Spec):
    """Lower bound: tokens by lot, anew in each step of a training, the same for an image later."""

    kind: Literal["random"]


class OracleScoring(Spec):
    """Upper bound: tokens by the ground truth, in evaluation too; `foreground_targets` labels."""

    kind: Literal["oracle"]


Scoring = Annotated[
    FocusScoring
    | ObjectnessScoring
    | DecoderAttentionScoring
    | FeatureNormScoring
    | RandomScoring
    | OracleScoring
    | DenseScoring,
    Field(discriminator="kind"),
]
_WITHOUT_LOGITS = (DenseScoring, FeatureNormScoring, RandomScoring, OracleScoring)


class ScoreModulation(Spec):
    """Top-down score modulation (Eq. 2): a coarser level's scores scale the finer one's tokens.

    Other scorings than `focus` have none.
    """

    enabled: bool = True
    """Off: every level is scored on its own and the scales are removed."""
    init_range: PositiveFloat = 0.3
    """The learnt scales (alpha) start uniform in ±init_range."""


class BackgroundEmbedding(Spec):
    """Learnt row and column embeddings of tokens that the last layer leaves out (Salience-DETR)."""

    enabled: bool = False
    """Off, as released: they keep what they last were."""
    size: Width = 200
    """Rows and columns that are told apart; those beyond share the last one's."""


class TokenSelection(Spec):
    """Foreground token selector (Sec. 3.2): which tokens the encoder refines, layer by layer."""

    scoring: Scoring = FocusScoring(kind="focus")
    """How tokens are scored."""
    keep_ratio: Ratio = 0.5
    """Share of the valid tokens that may be refined (rho), of which `cascade` gives each layer a
    share. The paper's "0.3" is the mean over layers: 0.5 x mean(cascade)."""
    cascade: Cascade = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
    """Share of the kept tokens by encoder layer: one value a layer, or made for a mean:
    {kind: constant, linear, geometric, step or reversed, mean: 0.6}. Layers that take more than the
    one before find newcomers as they last were."""
    score_modulation: ScoreModulation = ScoreModulation()
    """Top-down modulation between levels."""
    level_keep_ratios: Annotated[tuple[Ratio, ...], FromList] | None = added(None)
    """One share a level, fine to coarse, of which `keep_ratio` is then a factor: each level keeps
    its own best tokens (Salience-DETR: keep_ratio 1 and [0.4, 0.8, 1, 1]). Null ranks the tokens of
    all levels together, as released."""
    background_embedding: BackgroundEmbedding = added(BackgroundEmbedding())
    """What the decoder is told about tokens that the encoder left out."""

    @property
    def mean_keep_ratio(self) -> float:
        """Mean share of tokens refined by a layer: the number that the paper prints.

        With ratios by level, each level is taken to have a quarter of the tokens of the finer one.
        """
        by_level = self.level_keep_ratios or (1.0,)
        tokens = [4.0**-level for level in range(len(by_level))]
        kept = sum(share * count for share, count in zip(by_level, tokens, strict=True))
        return self.keep_ratio * (kept / sum(tokens)) * mean_share(self.cascade)


class DualAttention(Spec):
    """Dual attention (Sec. 3.3): fine-grained tokens attend to each other, then deformably."""

    enabled: bool = True
    """Off: encoder layers are plain deformable attention and the parameters are removed."""
    num_tokens: Count = 300
    """How many tokens of a layer take part; clamped to the tokens that the layer has."""
    share_class_head: bool = True
    """Whether the category score comes from the two-stage class head (released), or from an own
    head for all layers."""
    score_product: Literal["logits", "probabilities", "category"] = "logits"
    """Category x foreground score: raw logits (released; two negatives win), probabilities, or the
    category score alone, which is all there is when the scoring learns no foreground logit."""
    order: Literal["dual_first", "deformable_first"] = added("dual_first")
    """Which attention of a layer comes first: the dual one (released), or the deformable one, after
    which the tokens of the dual one are chosen."""


class ForegroundTargets(Spec):
    """Which tokens count as foreground while the scorer learns.

    A token is foreground for a box when it lies inside and its distance falls into the range of its
    level.
    """

    kind: Literal["side", "paper", "soft"] = added("side")
    """`side` is released: the distance is that to the farthest side. `paper` is what the text says:
    distance to the box's centre, ranges that overlap by half. `soft` has the ranges of `side` and
    labels that fall from 1 at the centre (Salience-DETR)."""
    size_ranges: (
        Annotated[tuple[Annotated[tuple[AnyFloat, AnyFloat], FromList], ...], FromList] | None
    ) = None
    """(low, high] limits in pixels of the distance, one pair a level; null doubles from
    `finest_limit` and leaves the coarsest open, which is the released
    [-1,64],[64,128],[128,256],[256,999999] for four levels. With `paper`, each begins in the middle
    of the one before: [-1,64],[32,128],[80,256],[168,999999]."""
    finest_limit: PositiveFloat = added(64.0)
    """The finest level's high limit in pixels where `size_ranges` is null. 64 is for images of some
    800 px: where all objects are smaller, no coarser level has foreground."""
    center_radius: PositiveFloat | None = None
    """Centre sampling radius in strides; null is off (computed but unused in the release)."""


class Proposals(Spec):
    """Two-stage proposals, one a token; the scorer masks tokens by the same rule."""

    base_size: PositiveFloat = 0.05
    """Width and height of a finest-level proposal, as a share of the image; doubles each level."""
    border: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """Tokens whose proposal is not strictly inside (border, 1 - border) are blanked."""


class Denoising(Spec):
    """Contrastive denoising queries (DINO), training only."""

    enabled: bool = True
    """Off: the label embedding is removed."""
    num_queries: Count = 100
    """Target number of positive queries a batch; groups = max(1, num_queries // max boxes)."""
    label_noise: Probability = 0.5
    """Labels flip with half of this probability."""
    box_noise: NonNegativeFloat = 1.0
    """Corner noise in half box sizes."""


class Matcher(Spec):
    """Hungarian matching costs."""

    class_cost: NonNegativeFloat = 2.0
    """Weight of the focal class cost."""
    bbox_cost: NonNegativeFloat = 5.0
    """Weight of the L1 box cost."""
    giou_cost: NonNegativeFloat = 2.0
    """Weight of the generalised IoU cost."""


class Loss(Spec):
    """Weights and shapes of the losses."""

    class_weight: NonNegativeFloat = 1.0
    """Weight of the focal classification loss, in every output."""
    bbox_weight: NonNegativeFloat = 5.0
    """Weight of the L1 box loss, in every output."""
    giou_weight: NonNegativeFloat = 2.0
    """Weight of the generalised IoU loss, in every output."""
    foreground_weight: NonNegativeFloat = 1.5
    """Weight of the foreground loss of the scorer."""
    focal_alpha: Probability = 0.25
    """Weight of positives in the focal loss of the classes, in the matching cost as well."""
    focal_gamma: NonNegativeFloat = 2.0
    """Focusing exponent of the focal loss of the classes, in the matching cost as well."""
    foreground_alpha: Probability = 0.25
    """Weight of positives in the foreground loss."""
    foreground_gamma: NonNegativeFloat = 2.0
    """Focusing exponent of the foreground loss."""


class Ops(Spec):
    """How the heavy operation is carried out; the numbers are the same."""

    implementation: Literal["auto", "compiled", "reference"] = "auto"
    """`reference` is plain PyTorch and defines the operation; `compiled` is the same in C++ and
    CUDA, many times faster, and an error where it is not built; `auto` takes the compiled one where
    it is built, else says so and takes the reference. Each trial records which one it used."""


class ModelSpec(Spec):
    """Focus-DETR, from a tiny demo to R50 and Swin: the same code with other numbers."""

    backbone: Backbone = ResNetBackbone(kind="resnet")
    """Feature extractor."""
    num_feature_levels: Annotated[int, Field(ge=1, le=8)] = 4
    """Feature levels of the encoder: those of the backbone, then stride-2 convolutions on top."""
    hidden_dim: Width = 256
    """Width of tokens and queries."""
    num_heads: Annotated[int, Field(gt=0, le=1024)] = 8
    """Attention heads."""
    num_points: Annotated[int, Field(gt=0, le=1024)] = 4
    """Sampling points a head and level in deformable attention."""
    dim_feedforward: Width = 2048
    """Width of the feed-forward networks."""
    num_encoder_layers: Layers = 6
    """Encoder layers."""
    num_decoder_layers: Layers = 6
    """Decoder layers."""
    num_queries: Count = 900
    """Object queries of the decoder; clamped to the tokens that the image has."""
    num_detections: Count = 300
    """Detections an image that post-processing returns."""
    norm_groups: Width = 32
    """Groups of the neck's group norm."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout in attention and feed-forward networks."""
    class_prior: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Class heads start at this probability."""
    inverse_sigmoid_eps: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """Clamp of the inverse sigmoid, everywhere."""
    value_source: Literal["neck_features", "updated_tokens"] = "neck_features"
    """What the encoder's deformable attention samples: the un-encoded neck features in every layer
    (released), or the tokens as refined so far (Algorithm 1, line 10)."""
    mask_padding_in_evaluation: bool = True
    """Whether padded pixels are masked in evaluation. Released code passes no masks and evaluates
    one image at a time, where both are the same; false reproduces it for padded batches too."""
    position: Position = Position()
    """Position embedding of the feature levels."""
    token_selection: TokenSelection = TokenSelection()
    """Foreground token selector."""
    dual_attention: DualAttention = DualAttention()
    """Dual attention of the encoder."""
    foreground_targets: ForegroundTargets = ForegroundTargets()
    """Labels of the scorer."""
    encoder_auxiliary: bool = added(False)
    """Whether each encoder layer but the last has detection heads of its own in training: Sparse
    DETR's auxiliary loss of the encoder."""
    proposals: Proposals = Proposals()
    """Two-stage proposals."""
    denoising: Denoising = Denoising()
    """Denoising queries."""
    matcher: Matcher = Matcher()
    """Assignment of queries to boxes."""
    loss: Loss = Loss()
    """Losses."""
    ops: Ops = Ops()
    """Implementation of the heavy operation."""

    @property
    def layer_shares(self) -> tuple[float, ...]:
        """Share of the kept tokens that each encoder layer refines."""
        return layer_shares(self.token_selection.cascade, self.num_encoder_layers)

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelSpec:
        problems = []
        cascade: tuple[float, ...] = ()
        try:
            cascade = self.layer_shares
        except ValueError as error:
            problems.append(f"token_selection.cascade: {error}")
        if self.hidden_dim % self.num_heads:
            problems.append(
                f"hidden_dim: must be a multiple of num_heads, got {self.hidden_dim}; "
                f"num_heads is {self.num_heads}"
            )
        if self.hidden_dim % 4:
            problems.append(
                f"hidden_dim: must be a multiple of 4, got {self.hidden_dim}; "
                "sine embeddings need it"
            )
        if self.hidden_dim % self.norm_groups:
            problems.append(
                f"norm_groups: must divide hidden_dim, got {self.norm_groups}; "
                f"hidden_dim is {self.hidden_dim}"
            )
        ranges = self.foreground_targets.size_ranges
        if ranges is not None and len(ranges) != self.num_feature_levels:
            problems.append(
                "foreground_targets.size_ranges: needs one pair a feature level, "
                f"got {len(ranges)} pairs; num_feature_levels is {self.num_feature_levels}"
            )
        limit = self.foreground_targets.finest_limit
        if ranges is not None and limit != ForegroundTargets().finest_limit:
            problems.append(
                "foreground_targets.finest_limit: size_ranges say all limits, "
                f"got {limit:g}; leave one of the two out"
            )
        dual, scoring = self.dual_attention, self.token_selection.scoring
        level_ratios = self.token_selection.level_keep_ratios
        if level_ratios is not None and len(level_ratios) != self.num_feature_levels:
            problems.append(
                "token_selection.level_keep_ratios: needs one value a feature level, "
                f"got {len(level_ratios)} values; num_feature_levels is {self.num_feature_levels}"
            )
        if isinstance(scoring, DenseScoring) and (
            level_ratios is not None or self.token_selection.background_embedding.enabled
        ):
            problems.append(
                "token_selection.scoring: `dense` has neither ratios by level nor a background, "
                "got one of them; remove level_keep_ratios and background_embedding"
            )
        keeps_all = self.token_selection.keep_ratio == 1 and all(part == 1 for part in cascade)
        if isinstance(scoring, DenseScoring) and not keeps_all:
            problems.append(
                f"token_selection.scoring: `dense` refines all tokens, got keep_ratio "
                f"{self.token_selection.keep_ratio} and cascade {list(cascade)}; set them to 1"
            )
        if (
            isinstance(scoring, _WITHOUT_LOGITS)
            and dual.enabled
            and dual.score_product != "category"
        ):
            problems.append(
                f"dual_attention.score_product: `{scoring.kind}` scoring has no foreground logit "
                f"to choose tokens by, got {dual.score_product}; set it to category, or "
                "dual_attention.enabled to false"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
