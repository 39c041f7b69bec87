"""AP as pycocotools gives it, and token statistics against brute force."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.data.shapes import ShapesDataset
from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.evaluation import (
    TokenStatistics,
    coco_metrics,
    evaluate,
    kept_depth,
)

MakeTrial = Callable[..., TrialSpec]


@pytest.fixture
def scenes(tiny_trial: MakeTrial) -> ShapesDataset:
    return ShapesDataset(tiny_trial(data={"num_val": 12}).data, "val")


def noisy_detections(dataset: ShapesDataset, noise: float) -> list[dict[str, Any]]:
    """The true boxes, moved, with some wrong classes and some doubles."""
    rng = np.random.default_rng(0)
    rows = []
    for truth in dataset.coco_ground_truth()["annotations"]:
        for _ in range(rng.integers(1, 3)):
            box = np.asarray(truth["bbox"]) + rng.normal(0, noise, 4)
            category = truth["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 4))
            rows.append(
                {
                    "image_id": truth["image_id"],
                    "category_id": category,
                    "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1.0).tolist()],
                    "score": float(rng.random()),
                }
            )
    return rows


def by_hand(dataset: ShapesDataset, rows: list[dict[str, Any]], **settings: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.coco_ground_truth()
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(rows), "bbox")
        for name, value in settings.items():
            setattr(run.params, name, value)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


def test_the_numbers_are_those_of_pycocotools(scenes: ShapesDataset) -> None:
    rows = noisy_detections(scenes, noise=1.5)
    metrics = coco_metrics(scenes, [dict(row) for row in rows])
    stats = by_hand(scenes, rows)
    names = ["AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL"]
    assert 0.05 < stats[0] < 0.95
    assert [metrics[f"coco/{name}"] for name in names] == stats.tolist()
    assert metrics["coco/AR"] == stats[8]


def test_ap_of_a_class_is_that_of_an_evaluation_of_the_class_alone(scenes: ShapesDataset) -> None:
    rows = noisy_detections(scenes, noise=1.5)
    metrics = coco_metrics(scenes, [dict(row) for row in rows])
    for category, name in zip(scenes.category_ids, scenes.class_names, strict=True):
        alone = by_hand(scenes, rows, catIds=[category])
        assert metrics[f"coco/AP_class/{name}"] == pytest.approx(alone[0], abs=1e-12)


def test_true_boxes_are_an_ap_of_one(scenes: ShapesDataset) -> None:
    rows = [
        {key: truth[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for truth in scenes.coco_ground_truth()["annotations"]
    ]
    assert coco_metrics(scenes, rows)["coco/AP"] == pytest.approx(1.0)


def test_no_detection_at_all_is_an_ap_of_zero(scenes: ShapesDataset) -> None:
    metrics = coco_metrics(scenes, [])
    assert metrics["coco/AP"] == metrics["coco/AP50"] == metrics["coco/AR"] == 0.0
    assert [metrics[f"coco/AP_class/{name}"] for name in scenes.class_names] == [0.0] * 3
    # No box is that large: nothing was missed.
    assert metrics["coco/APL"] == -1.0


@pytest.mark.parametrize("scoring", ["focus", "dense"])
def test_token_statistics_equal_brute_force(tiny_trial: MakeTrial, scoring: str) -> None:
    parts: dict[str, Any] = {"num_encoder_layers": 3}
    parts["token_selection"] = {"keep_ratio": 0.4, "cascade": [1.0, 0.7, 0.3]}
    if scoring == "dense":
        parts["dual_attention"] = {"enabled": False}
        parts["token_selection"] = {
            "scoring": {"kind": "dense"},
            "keep_ratio": 1.0,
            "cascade": [1.0, 1.0, 1.0],
        }
    spec = tiny_trial(model=parts, data={"image_size": [64, 48]})
    dataset = build_dataset(spec.data, "val")
    torch.manual_seed(0)
    model = build_model(spec.model, 3).eval()
    loader = build_eval_loader(dataset, spec.data, batch_size=3)
    statistics = TokenStatistics(spec.model)
    total = foreground = recalled = recalled_last = images = 0
    kept_layers = [0, 0, 0]
    for batch in loader:
        with torch.no_grad():
            output = model(batch.images, batch.sizes)
        statistics.update(output, batch)
        depth = kept_depth(output, 3)
        for number, target in enumerate(batch.targets):
            images += 1
            boxes = (cxcywh_to_xyxy(target["boxes"]) * torch.tensor([48, 64, 48, 64])).tolist()
            refined = refinements(output, number, scoring)
            assert depth[number].tolist() == refined
            token = 0
            ranges = [(-1, 64), (64, 128), (128, 256), (256, 1e9)]
            for (low, high), stride, (rows, columns) in zip(
                ranges, output["strides"], output["level_shapes"], strict=True
            ):
                for row in range(rows):
                    for column in range(columns):
                        x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        inside = is_foreground(x, y, boxes, low, high)
                        total += 1
                        foreground += inside
                        recalled += inside and refined[token] >= 1
                        recalled_last += inside and refined[token] >= 3
                        for layer in range(3):
                            kept_layers[layer] += refined[token] > layer
                        token += 1
    kept = sum(kept_layers) / 3
    metrics = statistics.metrics()
    assert foreground > 0
    assert metrics["tokens/total"] == total / images
    assert metrics["tokens/kept"] == pytest.approx(kept / images, rel=1e-12)
    assert metrics["tokens/kept_share"] == pytest.approx(kept / total, rel=1e-12)
    assert metrics["tokens/foreground_share"] == pytest.approx(foreground / total)
    assert metrics["tokens/foreground_recall"] == pytest.approx(recalled / foreground)
    assert metrics["tokens/foreground_recall_last_layer"] == pytest.approx(
        recalled_last / foreground
    )
    assert [metrics[f"tokens/kept_layer_{layer}"] * images for layer in range(3)] == kept_layers
    levels = sum(metrics[f"tokens/kept_level_{level}"] for level in range(4))
    assert levels == pytest.approx(metrics["tokens/kept_layer_0"])


def refinements(output: Any, image: int, scoring: str) -> list[int]:
    """How many layers refine each token of an image, from the scores alone."""
    total = sum(rows * columns for rows, columns in output["level_shapes"])
    if scoring == "dense":
        return [3] * total
    scores = output["foreground_logits"][image].tolist()
    order = sorted(range(total), key=lambda token: -scores[token])
    budget = int(np.float32(total) * np.float32(0.4)) + 1
    counts = [int(np.float32(share) * np.float32(budget)) for share in (1.0, 0.7, 0.3)]
    depth = [0] * total
    for count in counts:
        for token in order[:count]:
            depth[token] += 1
    return depth


def is_foreground(
    x: float, y: float, boxes_xyxy: list[list[float]], low: float, high: float
) -> bool:
    """Whether a token's centre lies in a box whose farthest side is in the level's range."""
    for left, top, right, bottom in boxes_xyxy:
        sides = (x - left, y - top, right - x, bottom - y)
        if min(sides) > 0 and low < max(sides) <= high:
            return True
    return False


def test_padding_is_not_counted(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_val": 2, "image_size": [64, 64]})
    dataset = build_dataset(spec.data, "val")
    model = build_model(spec.model, 3).eval()
    batch = next(iter(build_eval_loader(dataset, spec.data, batch_size=2)))
    images = batch.images.clone()
    images[1, :, 32:] = 0
    images[1, :, :, 32:] = 0
    padded = type(batch)(
        images, ((64, 64), (32, 32)), batch.targets, batch.image_ids, batch.original_sizes
    )
    statistics = TokenStatistics(spec.model)
    with torch.no_grad():
        output = model(padded.images, padded.sizes)
    statistics.update(output, padded)
    valid = output["token_selection"].valid_counts
    assert valid[1] < valid[0]
    assert statistics.metrics()["tokens/total"] == sum(valid) / 2
    budgets = output["token_selection"].budgets
    assert statistics.metrics()["tokens/kept_layer_0"] == sum(budgets) / 2


def test_an_evaluation_is_the_same_for_any_batch_size(tiny_trial: MakeTrial) -> None:
    spec = tiny_trial(data={"num_val": 6})
    dataset = build_dataset(spec.data, "val")
    torch.manual_seed(1)
    model = build_model(spec.model, 3)
    found = [
        evaluate(
            model,
            spec.model,
            build_eval_loader(dataset, spec.data, batch_size=size),
            dataset,
            torch.device("cpu"),
        )
        for size in (1, 4)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert not model.training
