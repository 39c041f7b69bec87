"""Latency of every cell, measured after training on a quiet machine: all cells in turn, in one run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.cost import measure_latency
from focus_lab.training.environment import choose_device
from focus_lab.training.fit import load_model
from focus_lab.training.reporter import checkpoint_folder

FILE = "latency.json"


def measure(
    folders: dict[str, Path], cache: Path, repeats: int = 20
) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of a forward pass of the first validation image.

    Args:
        folders: fingerprint of a trial -> its folder; one trial a cell.
        cache: file that keeps what was measured; measured again only when trials are new, because
            latencies compare only within one run.
        repeats: counted rounds.

    Returns:
        fingerprint -> `cost/latency_ms`, `cost/latency_p95_ms`.
    """
    try:
        known: dict[str, dict[str, float]] = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if set(known) >= set(folders):
        return known
    calls = {}
    device = None
    for mark, folder in folders.items():
        saved = checkpoints.latest(checkpoint_folder(folder))
        if saved is None:
            continue
        spec = TrialSpec.model_validate(saved.spec)
        device = choose_device(spec.compute)
        model = load_model(saved, device)
        dataset = build_dataset(spec.data, "val")
        loader = build_eval_loader(dataset, spec.data, batch_size=1, indices=[0])
        batch = next(iter(loader)).to(device)
        calls[mark] = partial(model, batch.images, batch.sizes)
    if device is None:
        return {}
    measured = {
        mark: {"cost/latency_ms": latency.median_ms, "cost/latency_p95_ms": latency.p95_ms}
        for mark, latency in measure_latency(calls, device, repeats).items()
    }
    cache.write_text(json.dumps(measured, indent=1))
    return measured
