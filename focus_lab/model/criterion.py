"""The losses of Focus-DETR: classes, boxes, denoising queries and foreground tokens.

Shape legend: L outputs of one shape (decoder layers and the two-stage head), B images, Q queries,
C classes, N tokens, K matches of one output, T boxes of the batch, G denoising groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from focus_lab.model.attention_map import attention_loss
from focus_lab.model.boxes import aligned_generalized_iou, cxcywh_to_xyxy
from focus_lab.model.focal import focal_loss, soft_focal_loss
from focus_lab.model.foreground_targets import ForegroundRule, foreground_rule
from focus_lab.model.matcher import HungarianMatcher, Matches
from focus_lab.model.output import DenoisingMeta, LayerOutput, ModelOutput, Target
from focus_lab.model.padded_targets import PaddedTargets, pad_targets
from focus_lab.model.precision import at_least_float32
from focus_lab.specs.model import ModelSpec


class Criterion:
    """Losses of a model's output, by name and without their weights.

    Names are `loss_class`, `loss_bbox` and `loss_giou` for the last decoder layer, with suffix
    `_{layer}` for the decoder layers before it, `_enc` for the two-stage head, `_enc_{layer}` for
    heads on the encoder's layers, `_dn` and `_dn_{layer}` for the denoising queries;
    `loss_foreground`; and `loss_class_category` where the encoder has a category head of its own.
    Every output is matched on its own.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        class_weight: float,
        bbox_weight: float,
        giou_weight: float,
        foreground_weight: float,
        focal_alpha: float,
        focal_gamma: float,
        foreground_alpha: float,
        foreground_gamma: float,
        foreground: ForegroundRule,
        denoising: bool,
    ) -> None:
        """Set up the losses.

        Args:
            num_classes: C, the classes of `pred_logits`.
            matcher: assigns queries to boxes.
            class_weight: weight of `loss_class*` in the total.
            bbox_weight: weight of `loss_bbox*`.
            giou_weight: weight of `loss_giou*`.
            foreground_weight: weight of `loss_foreground`.
            focal_alpha: weight of positives in the focal loss of the classes.
            focal_gamma: focusing exponent of the focal loss of the classes.
            foreground_alpha: weight of positives in `loss_foreground`.
            foreground_gamma: focusing exponent of `loss_foreground`.
            foreground: which tokens are foreground for the scorer.
            denoising: whether outputs without denoising queries report the `_dn` losses as zeros.
        """
        self.num_classes = num_classes
        self.matcher = matcher
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.foreground_alpha = foreground_alpha
        self.foreground_gamma = foreground_gamma
        self.foreground = foreground
        self.denoising = denoising
        self._weights = {
            "loss_class": class_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
            "loss_foreground": foreground_weight,
        }

    def weight(self, name: str) -> float:
        """Weight of a loss in the total; every output of the model weighs the same.

        Args:
            name: any name that a call returns.

        Raises:
            KeyError: there is no such loss.
        """
        return self._weights["_".join(name.split("_", 2)[:2])]

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of losses as returned by a call, a scalar."""
        values = torch.stack(tuple(losses.values()))
        return (values * values.new_tensor([self.weight(name) for name in losses])).sum()

    def __call__(
        self,
        output: ModelOutput,
        targets: Sequence[Target],
        sizes: Sequence[tuple[int, int]],
        *,
        num_boxes: float | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses of a batch. Nothing that is passed in is changed.

        Args:
            output: what the model returned.
            targets: boxes of each image; images without boxes are fine, alone or together.
            sizes: valid (height, width) of each image in pixels.
            num_boxes: what the class and box losses are divided by, at least 1; None counts the
                boxes of this batch. Who passes a part of a batch passes the boxes of the whole.

        Returns:
            Unweighted scalars in float32 (float64 for float64 outputs); finite for finite outputs.

        Raises:
            NonFiniteLossError: a prediction is not finite, so that nothing can be matched.
        """
        padded = pad_targets(targets)
        normaliser = max(1.0, float(padded.total if num_boxes is None else num_boxes))

        decoder_suffixes = ["", *(f"_{layer}" for layer in range(len(output["aux_outputs"])))]
        suffixes = [*decoder_suffixes, "_enc"]
        outputs = [output, *output["aux_outputs"], output["enc_outputs"]]
        if output["category_outputs"] is not None:
            suffixes.append("_category")
            outputs.append(output["category_outputs"])
        logits, boxes = _stack(outputs)
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"criterion: pred_logits has the wrong number of classes, got {logits.shape[-1]}; "
                f"the criterion was built for {self.num_classes}"
            )
        matches = self.matcher(logits.detach(), boxes.detach(), padded)
        losses = self._set_losses(suffixes, logits, boxes, padded, matches, normaliser)
        # The boxes of a category head are borrowed: they serve its matching and learn elsewhere.
        losses.pop("loss_bbox_category", None)
        losses.pop("loss_giou_category", None)

        # Each has as many queries as its layer has tokens.
        for layer, auxiliary in enumerate(output["enc_aux_outputs"]):
            logits, boxes = _stack([auxiliary])
            matches = self.matcher(logits.detach(), boxes.detach(), padded)
            losses |= self._set_losses(
                [f"_enc_{layer}"], logits, boxes, padded, matches, normaliser
            )

        denoising, meta = output["denoising"], output["denoising_meta"]
        if denoising is not None and meta is not None:
            suffixes = [f"_dn{suffix}" for suffix in decoder_suffixes]
            dn_logits, dn_boxes = _stack([denoising, *denoising["aux_outputs"]])
            matches = _denoising_matches(padded, meta, len(suffixes))
            losses |= self._set_losses(
                suffixes, dn_logits, dn_boxes, padded, matches, normaliser * meta.groups
            )
        elif self.denoising:
            zero = logits.new_zeros(())
            for suffix in decoder_suffixes:
                losses |= {
                    f"{kind}_dn{suffix}": zero for kind in ("loss_class", "loss_bbox", "loss_giou")
                }

        scores, attention = output["foreground_logits"], output["decoder_attention"]
        selection = output["token_selection"]
        if scores is not None and attention is not None and selection is not None:
            losses["loss_foreground"] = attention_loss(scores, attention, selection.budgets)
        elif scores is not None:
            labels = self.foreground.labels(
                padded, sizes, output["level_shapes"], output["strides"]
            )
            losses["loss_foreground"] = self.foreground_loss(scores, labels)
        return losses

    def foreground_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of the scorer (Sec. 3.2), by image over its positives, then the mean.

        Args:
            logits: [B, N], foreground logits of all tokens, those of the padding included.
            labels: bool [B, N], the foreground labels, or soft ones in [0, 1].
        """
        logits = at_least_float32(logits)
        positive = labels > 0
        loss = focal_loss(logits, positive, self.foreground_alpha, self.foreground_gamma)
        if labels.is_floating_point():
            soft = soft_focal_loss(logits, labels, self.foreground_alpha, self.foreground_gamma)
            loss = torch.where(positive, soft, loss)
        loss = loss.sum(dim=1)  # [B]
        return (loss / positive.sum(dim=1).clamp(min=1)).mean()

    def _set_losses(
        self,
        suffixes: Sequence[str],
        logits: Tensor,
        boxes: Tensor,
        targets: PaddedTargets,
        matches: Matches,
        normaliser: float,
    ) -> dict[str, Tensor]:
        """Class and box losses of L outputs in one go.

        Args:
            suffixes: L suffixes of the names.
            logits: [L, B, Q, C].
            boxes: [L, B, Q, 4].
            targets: boxes of the batch.
            matches: K pairs an output; all other queries are background.
            normaliser: what the sums are divided by.
        """
        layers = torch.arange(len(suffixes), device=logits.device)[:, None]  # [L, 1]
        true_labels = targets.labels[matches.images, matches.targets]  # [L, K]
        true_boxes = targets.boxes[matches.images, matches.targets].to(boxes)  # [L, K, 4]
        matched_boxes = boxes[layers, matches.images, matches.queries]  # [L, K, 4]

        positive = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        positive[layers, matches.images, matches.queries, true_labels] = True
        class_loss = focal_loss(logits, positive, self.focal_alpha, self.focal_gamma)
        class_loss = class_loss.sum(dim=(1, 2, 3))
        bbox_loss = (matched_boxes - true_boxes).abs().sum(dim=(1, 2))
        _, giou = aligned_generalized_iou(cxcywh_to_xyxy(matched_boxes), cxcywh_to_xyxy(true_boxes))
        giou_loss = (1.0 - giou).sum(dim=1)

        kinds = {"loss_class": class_loss, "loss_bbox": bbox_loss, "loss_giou": giou_loss}
        return {
            kind + suffix: loss
            for kind, values in kinds.items()
            for suffix, loss in zip(suffixes, (values / normaliser).unbind(), strict=True)
        }


def build_criterion(spec: ModelSpec, num_classes: int) -> Criterion:
    """Criterion of a model built from the same spec for data with `num_classes` classes."""
    loss, matcher = spec.loss, spec.matcher
    foreground = foreground_rule(spec)
    if spec.token_selection.scoring.kind == "objectness":
        foreground = foreground.on_any_level()
    return Criterion(
        num_classes,
        HungarianMatcher(
            matcher.class_cost,
            matcher.bbox_cost,
            matcher.giou_cost,
            loss.focal_alpha,
            loss.focal_gamma,
        ),
        class_weight=loss.class_weight,
        bbox_weight=loss.bbox_weight,
        giou_weight=loss.giou_weight,
        foreground_weight=loss.foreground_weight,
        focal_alpha=loss.focal_alpha,
        focal_gamma=loss.focal_gamma,
        foreground_alpha=loss.foreground_alpha,
        foreground_gamma=loss.foreground_gamma,
        foreground=foreground,
        denoising=spec.denoising.enabled,
    )


def _denoising_matches(targets: PaddedTargets, meta: DenoisingMeta, num_outputs: int) -> Matches:
    """Pairs known by construction: positive slot k of every group repairs box k of its image.

    Returns:
        K = G x T matches, the same for each of the `num_outputs` outputs.
    """
    first_slots = torch.arange(meta.groups, device=targets.images.device) * meta.single_padding
    slots = (first_slots[:, None] + targets.positions).flatten()
    return Matches(
        images=targets.images.repeat(meta.groups),
        queries=slots.expand(num_outputs, -1),
        targets=targets.positions.repeat(meta.groups).expand(num_outputs, -1),
    )


def _stack(outputs: Sequence[LayerOutput]) -> tuple[Tensor, Tensor]:
    """Logits [L, B, Q, C] and boxes [L, B, Q, 4] of equally shaped outputs, at least float32."""
    logits = torch.stack([output["pred_logits"] for output in outputs])
    boxes = torch.stack([output["pred_boxes"] for output in outputs])
    return at_least_float32(logits), at_least_float32(boxes)
