"""Latency of every cell, measured after training: all cells in turn, in one run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.cost import measure_latency
from focus_lab.training.detector import load_model
from focus_lab.training.environment import choose_device
from focus_lab.training.folder import checkpoint_folder


def measure(folders: dict[str, Path], repeats: int = 20) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of a forward pass of the first validation image.

    Args:
        folders: fingerprint of a trial -> its folder; one trial a cell.
        repeats: counted rounds.

    Returns:
        fingerprint -> `cost/latency_ms`, `cost/latency_p95_ms`.
    """
    calls: dict[str, Callable[[], object]] = {}
    device = None
    for mark, folder in folders.items():
        saved = checkpoints.latest(checkpoint_folder(folder))
        if saved is None:
            continue
        spec = TrialSpec.model_validate(saved.spec)
        device = choose_device(spec.compute)
        torch.set_num_threads(spec.compute.threads)
        model = load_model(saved, device)
        dataset = build_dataset(spec.data, "val")
        loader = build_eval_loader(dataset, spec.data, batch_size=1, indices=[0])
        batch = next(iter(loader)).to(device)
        calls[mark] = partial(model, batch.images, batch.sizes, batch.targets)
    if device is None:
        return {}
    return {
        mark: {"cost/latency_ms": latency.median_ms, "cost/latency_p95_ms": latency.p95_ms}
        for mark, latency in measure_latency(calls, device, repeats).items()
    }
