"""Evaluation of a model, and token statistics against brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.model.boxes import cxcywh_to_xyxy
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.evaluation import (
    TokenStatistics,
    evaluate,
    kept_depth,
)

MakeTrial = Callable[..., TrialSpec]


@pytest.mark.parametrize(
    ("scoring", "cascade"),
    [("focus", [1.0, 0.7, 0.3]), ("focus", [0.3, 1.0, 0.7]), ("dense", [1.0, 1.0, 1.0])],
    ids=["falling", "rising", "dense"],
)
def test_token_statistics_equal_brute_force(
    tiny_trial: MakeTrial, scoring: str, cascade: list[float]
) -> None:
    parts: dict[str, Any] = {"num_encoder_layers": 3}
    parts["token_selection"] = {"keep_ratio": 0.4, "cascade": cascade}
    if scoring == "dense":
        parts["dual_attention"] = {"enabled": False}
        parts["token_selection"] = {
            "scoring": {"kind": "dense"},
            "keep_ratio": 1.0,
            "cascade": [1.0, 1.0, 1.0],
        }
    data = {"image_size": [64, 48], "object_size": [8, 48], "foreground_share": 0.5}
    spec = tiny_trial(model=parts, data=data)
    dataset = build_dataset(spec.data, "val")
    torch.manual_seed(0)
    model = build_model(spec.model, 3).eval()
    loader = build_eval_loader(dataset, spec.data, batch_size=3)
    statistics = TokenStatistics(spec.model)
    total = foreground = recalled = recalled_last = images = 0
    kept_layers = [0, 0, 0]
    parts_seen: dict[str, list[int]] = {}
    for batch in loader:
        with torch.no_grad():
            output = model(batch.images, batch.sizes)
        statistics.update(output, batch)
        depth = kept_depth(output, 3)
        for number, target in enumerate(batch.targets):
            images += 1
            boxes = (cxcywh_to_xyxy(target["boxes"]) * torch.tensor([48, 64, 48, 64])).tolist()
            layers = refinements(output, number, scoring, cascade)
            refined = [sum(token in layer for layer in layers) for token in range(depth.shape[1])]
            assert depth[number].tolist() == refined
            token = 0
            ranges = [(-1, 64), (64, 128), (128, 256), (256, 1e9)]
            areas = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e9)}
            sizes = {
                size: [b for b in boxes if least <= (b[2] - b[0]) * (b[3] - b[1]) < most]
                for size, (least, most) in areas.items()
            }
            levels_of_image = zip(ranges, output["strides"], output["level_shapes"], strict=True)
            for level, ((low, high), stride, (rows, columns)) in enumerate(levels_of_image):
                for row in range(rows):
                    for column in range(columns):
                        x, y = (column + 0.5) * stride, (row + 0.5) * stride
                        inside = is_foreground(x, y, boxes, low, high)
                        total += 1
                        foreground += inside
                        recalled += inside and refined[token] >= 1
                        recalled_last += inside and token in layers[-1]
                        of_size = {
                            size: is_foreground(x, y, some, low, high)
                            for size, some in sizes.items()
                        }
                        for part, is_part in {f"level_{level}": inside, **of_size}.items():
                            counts = parts_seen.setdefault(part, [0, 0])
                            counts[0] += is_part
                            counts[1] += is_part and refined[token] >= 1
                        for layer in range(3):
                            kept_layers[layer] += token in layers[layer]
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
    expected = {part: kept / count for part, (count, kept) in parts_seen.items() if count}
    assert {"level_0", "small", "medium"} <= set(expected) < {*parts_seen, "large"}
    for part in parts_seen:
        # No foreground, no recall.
        assert metrics.get(f"tokens/foreground_recall_{part}") == expected.get(part)
    assert [metrics[f"tokens/kept_layer_{layer}"] * images for layer in range(3)] == kept_layers
    levels = sum(metrics[f"tokens/kept_level_{level}"] for level in range(4))
    assert levels == pytest.approx(max(kept_layers) / images)


def refinements(output: Any, image: int, scoring: str, cascade: list[float]) -> list[set[int]]:
    """The tokens of an image that each layer refines, from the scores alone."""
    total = sum(rows * columns for rows, columns in output["level_shapes"])
    if scoring == "dense":
        return [set(range(total))] * 3
    scores = output["foreground_logits"][image].tolist()
    order = sorted(range(total), key=lambda token: -scores[token])
    budget = int(np.float32(total) * np.float32(0.4)) + 1
    return [set(order[: int(np.float32(share) * np.float32(budget))]) for share in cascade]


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
    twice = TokenStatistics(spec.model)
    twice.add(statistics)
    twice.add(statistics)
    assert twice.images == 4
    assert twice.metrics() == statistics.metrics()
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
