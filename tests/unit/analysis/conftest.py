"""Records made by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord


def _trial(cell: str, seed: int, metrics: dict[str, float], samples: Path | None) -> TrialRecord:
    curves = {name: [(1, value / 2), (2, value)] for name, value in metrics.items()}
    curves["loss/total"] = [(1, 9.0 + seed), (2, 5.0 + seed)]
    return TrialRecord(f"{cell}-{seed}", cell, seed, "SUCCEEDED", None, curves, samples)


@pytest.fixture
def make_record() -> Callable[..., ExperimentRecord]:
    """A record from {cell: {seed: AP}}; cell number i keeps i / 10, and the last is the base."""

    def make(
        aps: dict[str, dict[int, float]],
        *,
        baseline: bool = True,
        samples: Path | None = None,
        latency: bool = True,
        **changes: object,
    ) -> ExperimentRecord:
        cells, trials = [], []
        for place, (name, by_seed) in enumerate(aps.items()):
            ratio = (place + 1) / 10
            overrides = {"model.token_selection.keep_ratio": ratio}
            is_baseline = baseline and place == len(aps) - 1
            cells.append(CellRecord(name, overrides, is_baseline, ratio, 0.6 * ratio))
            for seed, ap in by_seed.items():
                metrics = {
                    "coco/AP": ap,
                    "coco/AP50": min(1.0, 1.5 * ap),
                    "coco/APL": -1.0,
                    "cost/gflops": 10.0 * (place + 1),
                    "cost/encoder_gflops": 4.0 * (place + 1),
                    "cost/backbone_gflops": 6.0 * (place + 1),
                    "cost/params": 1.5e6,
                    "coco/AP_class/ring": ap,
                    "coco/AP_class/cross": ap / 2,
                    "tokens/foreground_recall": 0.8,
                    "tokens/foreground_recall_level_0": 0.6 + place / 100,
                    "tokens/foreground_recall_level_1": 0.8,
                    "tokens/foreground_recall_small": 0.5,
                    "tokens/foreground_recall_large": 0.9,
                    "train/images_per_second": 20.0,
                }
                if latency:
                    metrics["cost/latency_ms"] = 30.0 + place
                trials.append(_trial(name, seed, metrics, samples))
        values: dict[str, object] = {
            "name": "keep-ratio",
            "description": "How many?",
            "objectives": {"coco/AP": "max", "cost/gflops": "min"},
            "cells": tuple(cells),
            "trials": tuple(trials),
            "spec": {"name": "keep-ratio"},
            "facts": {"machine": "a box, 2 cores"},
            "foreground_share": 0.137,
        }
        return ExperimentRecord(**(values | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def empty_record() -> ExperimentRecord:
    """An experiment of which nothing is known yet."""
    return ExperimentRecord("empty", "", {}, (), (), {})


@pytest.fixture
def samples_folder(tmp_path: Path) -> Path:
    """Sample pictures of one image of 64 x 96 with two levels and two layers."""
    folder = tmp_path / "samples"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "7.jpg")
    entry = {
        "image_id": 7,
        "file": "7.jpg",
        "original_size": [64, 96],
        "input_size": [64, 96],
        "padded_size": [64, 96],
        "truth": {"boxes_xyxy": [[10, 10, 40, 40]], "labels": [0]},
        "detections": {
            "boxes_xyxy": [[11, 9, 41, 42], [0, 0, 5, 5]],
            "labels": [0, 1],
            "scores": [0.9, 0.1],
        },
        "level_shapes": [[4, 6], [2, 3]],
        "strides": [16, 32],
        "kept_depth": [0] * 12 + [1] * 6 + [2] * 6 + [0, 0, 0, 1, 2, 2],
    }
    content = {"class_names": ["ring", "cross"], "num_encoder_layers": 2, "images": [entry]}
    (folder / "samples.json").write_text(json.dumps(content))
    breakdown = {
        "precision": {"0.50": [0.9] * 60 + [0.0] * 41, "0.75": [0.7] * 40 + [0.0] * 61},
        "confusion": {
            "iou": 0.5,
            "score": 0.3,
            "class_names": ["ring", "cross"],
            "counts": [[0, 0, 6], [0, 1, 2], [0, 2, 2], [1, 1, 5], [2, 0, 3]],
            "left_out": 0,
        },
    }
    (folder / "breakdown.json").write_text(json.dumps(breakdown))
    return folder
