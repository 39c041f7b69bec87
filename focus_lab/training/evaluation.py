"""Evaluation: detections on the validation images, their AP, and what the selector kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch

from focus_lab.data.dataset import DetectionDataset
from focus_lab.data.loader import Batch
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.foreground_targets import foreground_rule
from focus_lab.model.output import ModelOutput, SelectedTokens, Target
from focus_lab.model.postprocess import Detections, postprocess
from focus_lab.specs.model import ModelSpec
from focus_lab.training.breakdown import write_breakdown
from focus_lab.training.reporter import Metrics
from focus_lab.training.scoring import Evaluator, Found, coco_scores
from focus_lab.training.workers import ALONE, Workers

_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, math.inf)}
"""COCO's sizes of boxes, as areas in square pixels of the original image."""


def evaluate(
    model: FocusDETR,
    spec: ModelSpec,
    loader: Iterable[Batch],
    dataset: DetectionDataset,
    device: torch.device,
    autocast: torch.dtype | None = None,
    evaluator: Evaluator = "pycocotools",
    workers: Workers = ALONE,
    breakdown: Path | None = None,
) -> Metrics:
    """AP and token statistics over a data set.

    Args:
        model: the detector; left in evaluation mode.
        spec: its spec.
        loader: this worker's batches of the data set.
        dataset: ground truth, category ids and class names.
        device: where the model is.
        autocast: type of the forward pass; None for full precision.
        evaluator: who computes AP.
        workers: all workers of the trial; each of them calls this.
        breakdown: folder into which the first worker writes what lies behind AP; None for nowhere.

    Returns:
        The same for every worker: `coco/*` in [0, 1] (-1 where the data set has no such box, as
        pycocotools) and `tokens/*`.
    """
    model.eval()
    parts: list[Found] = []
    tokens = TokenStatistics(spec)
    with torch.inference_mode():
        for host_batch in loader:
            workers.goes_on("evaluating a batch")
            batch = host_batch.to(device)
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                output = model(batch.images, batch.sizes, batch.targets, image_ids=batch.image_ids)
            found = detect(output, batch, spec.num_detections)
            for image_id, detections in zip(batch.image_ids, found, strict=True):
                parts.append(Found.of_image(image_id, detections, dataset.category_ids))
            tokens.update(output, batch)
    metrics: Metrics = {}
    if everybodys := workers.gather((Found.joined(parts), tokens)):
        for _, more_tokens in everybodys[1:]:
            tokens.add(more_tokens)
        workers.goes_on("computing AP")
        found_by_all = Found.joined([theirs for theirs, _ in everybodys])
        truth = dataset.coco_ground_truth()
        scores = coco_scores(truth, found_by_all, evaluator)
        metrics = scores.metrics | tokens.metrics()
        if breakdown is not None:
            workers.goes_on("writing what lies behind AP")
            write_breakdown(truth, found_by_all, scores, breakdown)
    return cast(Metrics, workers.broadcast(metrics))


def detect(output: ModelOutput, batch: Batch, num_detections: int) -> list[Detections]:
    """Detections of a batch in the pixels of the original images."""
    return postprocess(
        output["pred_logits"],
        output["pred_boxes"],
        batch.sizes,
        batch.original_sizes,
        num_detections,
    )


class TokenStatistics:
    """What the selector kept, summed over images.

    Foreground recall is the share of tokens labelled foreground by `model.foreground_targets`,
    whatever the scoring, that any encoder layer keeps (of most cascades: the first); with dense
    scoring it is 1. A token counts for every size of box that makes it foreground.

    Args:
        spec: the model's spec: its layers and foreground targets.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._layers = spec.num_encoder_layers
        self._rule = foreground_rule(spec)
        self.images = 0
        self.valid = self.foreground = self.recalled = self.recalled_last = 0.0
        self.kept = torch.zeros(self._layers, dtype=torch.float64)
        levels = spec.num_feature_levels
        self.kept_by_level = torch.zeros(levels, dtype=torch.float64)
        # Rows: foreground, and what any encoder layer keeps of it.
        self.recall_by_level = torch.zeros(2, levels, dtype=torch.float64)
        self.recall_by_size = torch.zeros(2, len(_SIZES), dtype=torch.float64)

    def update(self, output: ModelOutput, batch: Batch) -> None:
        """Count one batch."""
        level_shapes = output["level_shapes"]
        labels = self._rule.labels(
            batch.targets, batch.sizes, level_shapes, output["strides"]
        ).bool()  # [B, N]
        depth = kept_depth(output, self._layers)  # [B, N]
        self.images += len(batch.image_ids)
        self.foreground += float(labels.sum())
        self.recalled += float((labels & (depth >= 1)).sum())
        self.recalled_last += float((labels & _kept_by_last_layer(output, depth)).sum())
        tokens = [height * width for height, width in level_shapes]
        levels = torch.split(depth, tokens, dim=1)
        self.kept_by_level += torch.stack([(level >= 1).sum() for level in levels]).cpu()
        self.recall_by_level += torch.stack(
            [
                torch.stack([part.sum() for part in torch.split(chosen, tokens, dim=1)])
                for chosen in (labels, labels & (depth >= 1))
            ]
        ).cpu()
        of_sizes = (
            self._rule.labels(
                [
                    target
                    for limits in _SIZES.values()
                    for target in _targets_of_size(batch, *limits)
                ],
                batch.sizes * len(_SIZES),
                level_shapes,
                output["strides"],
            )
            .bool()
            .view(len(_SIZES), *depth.shape)
        )  # [3, B, N]
        self.recall_by_size += torch.stack(
            [chosen.sum(dim=(1, 2)) for chosen in (of_sizes, of_sizes & (depth >= 1))]
        ).cpu()
        selected = output["token_selection"]
        self.valid += float(sum(selected.valid_counts) if selected else depth.numel())
        kept = [sum(layer) for layer in selected.kept] if selected else depth.numel()
        self.kept += torch.tensor(kept, dtype=torch.float64)

    def add(self, other: TokenStatistics) -> None:
        """Count what another worker counted."""
        for name in ("images", "valid", "foreground", "recalled", "recalled_last"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("kept", "kept_by_level", "recall_by_level", "recall_by_size"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def metrics(self) -> Metrics:
        """Means an image, as `tokens/*`; no recall of a level or box size without foreground."""
        images = max(1, self.images)
        metrics = {
            "tokens/total": self.valid / images,
            "tokens/kept": float(self.kept.mean()) / images,
            "tokens/kept_share": float(self.kept.mean()) / max(1.0, self.valid),
            "tokens/foreground_share": self.foreground / max(1.0, self.valid),
            "tokens/foreground_recall": self.recalled / max(1.0, self.foreground),
            "tokens/foreground_recall_last_layer": self.recalled_last / max(1.0, self.foreground),
        }
        for layer, count in enumerate(self.kept.tolist()):
            metrics[f"tokens/kept_layer_{layer}"] = count / images
        for level, count in enumerate(self.kept_by_level.tolist()):
            metrics[f"tokens/kept_level_{level}"] = count / images
        for level, (count, kept) in enumerate(self.recall_by_level.T.tolist()):
            if count:
                metrics[f"tokens/foreground_recall_level_{level}"] = kept / count
        for size, (count, kept) in zip(_SIZES, self.recall_by_size.T.tolist(), strict=True):
            if count:
                metrics[f"tokens/foreground_recall_{size}"] = kept / count
        return metrics


def _targets_of_size(batch: Batch, low: float, high: float) -> list[Target]:
    """The boxes of an area in [low, high) square pixels of the original image."""
    chosen: list[Target] = []
    for target, (height, width) in zip(batch.targets, batch.original_sizes, strict=True):
        areas = target["boxes"][:, 2] * target["boxes"][:, 3] * (height * width)  # [M]
        inside = (areas >= low) & (areas < high)
        chosen.append({"labels": target["labels"][inside], "boxes": target["boxes"][inside]})
    return chosen


def kept_depth(output: ModelOutput, num_layers: int) -> torch.Tensor:
    """How many encoder layers refine each token, counting only what is written back.

    Returns:
        int64 [B, N], 0 = background throughout, `num_layers` = refined by all.
    """
    batch, total = output["pred_logits"].shape[0], sum(h * w for h, w in output["level_shapes"])
    device = output["pred_logits"].device
    selected = output["token_selection"]
    if selected is None:
        return torch.full((batch, total), num_layers, device=device)
    depth = torch.zeros((batch, total), dtype=torch.int64, device=device)
    for layer in range(num_layers):
        depth.scatter_add_(1, selected.indices[layer], _written(selected, layer).long())
    return depth


def _kept_by_last_layer(output: ModelOutput, depth: torch.Tensor) -> torch.Tensor:
    """Tokens that the last encoder layer refines, bool [B, N]; `depth` from `kept_depth`."""
    selected = output["token_selection"]
    if selected is None:
        return depth > 0
    return torch.zeros_like(depth, dtype=torch.bool).scatter(
        1, selected.indices[-1], _written(selected, -1)
    )


def _written(selected: SelectedTokens, layer: int) -> torch.Tensor:
    """Which tokens of a layer are written back, bool [B, k]."""
    indices = selected.indices[layer]
    budgets = torch.tensor(selected.budgets, device=indices.device)[:, None]  # [B, 1]
    return torch.arange(indices.shape[1], device=indices.device)[None] < budgets
