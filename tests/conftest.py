"""Specs so small that training them takes a moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec, TrialSpec

# Speed is measured in benchmarks: a busy machine must fail no test.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

_TINY: dict[str, Any] = {
    "model": {
        "backbone": {"kind": "residual", "widths": [4, 8, 8, 16, 16]},
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
