"""Specs so small that training them takes a moment; records of results made by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import postgresql as servers
import pytest
import torch
from hypothesis import settings
from PIL import Image

from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec, TrialSpec

# Speed is measured in benchmarks: a busy machine must fail no test.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

_TINY: dict[str, Any] = {
    "model": {
        "backbone": {"kind": "residual", "widths": [8, 8, 8, 16, 16]},
        "hidden_dim": 16,
        "num_heads": 2,
        "dim_feedforward": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "num_queries": 8,
        "num_detections": 8,
        "norm_groups": 4,
        "token_selection": {"keep_ratio": 0.5, "cascade": [1.0]},
        "dual_attention": {"num_tokens": 4},
        "denoising": {"num_queries": 4},
    },
    "data": {
        "kind": "shapes",
        "image_size": [32, 32],
        "num_classes": 3,
        "num_train": 8,
        "num_val": 4,
        "objects": [1, 3],
        "object_size": [8, 20],
        "foreground_share": None,
        "distractors": [0, 1],
        "augmentation": {"sizes": [], "crop": {"probability": 0}},
        "evaluation": {"size": None},
    },
    "training": {
        "epochs": 2,
        "batch_size": 4,
        "evaluation_batch_size": 4,
        "log_every": 1,
        "optimizer": {"lr": 0.001},
        "schedule": {"kind": "cosine"},
    },
    "compute": {"device": "cpu"},
}


# Test processes side by side share the cores, and would fight for them with a pool each.
if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU skip where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[servers.Schemas]:
    """One PostgreSQL server for the whole test run: the one of the environment, or its own."""
    if url := os.environ.get("FOCUS_LAB_TEST_DATABASE_URL"):
        given = servers.Schemas(url)
        yield given
        given.drop()
        return
    if reason := servers.why_not():
        pytest.skip(reason)
    with servers.server() as started:
        yield servers.Schemas(started.new_database())


@pytest.fixture
def tiny_content() -> dict[str, Any]:
    """The base of a tiny experiment, as it would stand in YAML."""
    return merge(_TINY, {})


@pytest.fixture
def tiny_trial() -> Callable[..., TrialSpec]:
    """Makes a tiny trial; keywords are merged into its parts."""

    def make(seed: int = 0, **parts: Any) -> TrialSpec:
        return TrialSpec.model_validate(merge(_TINY, {"seed": seed, **parts}))

    return make


@pytest.fixture
def tiny_experiment() -> Callable[..., ExperimentSpec]:
    """Makes a tiny experiment; keywords are merged into its parts."""

    def make(name: str = "tiny", **parts: Any) -> ExperimentSpec:
        return ExperimentSpec.model_validate(merge(_TINY, {"name": name, **parts}))

    return make


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
