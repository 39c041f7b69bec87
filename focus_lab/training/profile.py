"""Parameters, GMACs by part, latency and memory of one model."""

from __future__ import annotations

from typing import Any

import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import build_eval_loader
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.cost import (
    PAPER_SHAPE,
    Cost,
    count,
    evaluation_shapes,
    mean_cost,
    measure_latency,
    peak_memory_mib,
)
from focus_lab.training.environment import choose_device


def profile_model(spec: TrialSpec, repeats: int = 20) -> dict[str, Any]:
    """Count and time the model of a trial.

    Returns:
        `gmacs` (shape -> part -> GMACs), `metrics` (`cost/*`), and `facts` for reading.
    """
    torch.set_num_threads(spec.compute.threads)
    device = choose_device(spec.compute)
    val_set = build_dataset(spec.data, "val")
    model = build_model(spec.model, len(val_set.class_names), load_backbone=False).to(device).eval()
    own = mean_cost(model, evaluation_shapes(val_set, spec.data))
    paper = count(model, PAPER_SHAPE)
    loader = build_eval_loader(val_set, spec.data, batch_size=1, indices=[0])
    batch = next(iter(loader)).to(device)
    calls = {"model": lambda: model(batch.images, batch.sizes, batch.targets)}
    latency = measure_latency(calls, device, repeats)["model"]
    height, width = batch.images.shape[-2:]
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    selection = spec.model.token_selection
    return {
        "gmacs": {
            "the data's own size": _gmacs(own),
            f"{PAPER_SHAPE[0]} x {PAPER_SHAPE[1]}": _gmacs(paper),
        },
        "metrics": own.metrics()
        | {
            "cost/gmacs_800x1333": paper.total_macs / 1e9,
            "cost/latency_ms": latency.median_ms,
            "cost/latency_p95_ms": latency.p95_ms,
            "cost/peak_memory_mib": peak_memory_mib(device),
        },
        "facts": {
            "parameters": f"{own.parameters / 1e6:.2f} M",
            "keep ratio": (
                f"{selection.keep_ratio:g} (mean over layers {selection.mean_keep_ratio:.3g})"
            ),
            "latency": (
                f"median {latency.median_ms:.1f} ms, p95 {latency.p95_ms:.1f} ms, batch 1, "
                f"{height} x {width}, {repeats} passes, {name}"
            ),
            "deformable attention": model.implementation,
            "peak memory": f"{peak_memory_mib(device):.0f} MiB",
            "counting": "1 multiply-add = 1 MAC = 2 FLOPs; sampling, top-k, gather, norms count 0",
        },
    }


def _gmacs(cost: Cost) -> dict[str, float]:
    parts = {part: macs / 1e9 for part, macs in cost.macs.items()}
    return parts | {"total": cost.total_macs / 1e9}
