"""What a trial would cost before it runs: counted FLOPs, and time from a measured training step."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.data.loader import build_train_loader
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.plan import Cell, Plan
from focus_lab.training.cost import Cost, mean_cost, model_without_memory
from focus_lab.training.environment import choose_device
from focus_lab.training.fit import evaluation_shapes

_STEPS = 3
_MEASURING_SECONDS = 15.0


@dataclass(frozen=True)
class Estimate:
    """What one trial of a cell would take."""

    cell: Cell
    trials: int
    """Seeds of the cell."""
    cost: Cost
    """One image at the data set's own sizes."""
    steps: int
    """Optimizer steps of a trial."""
    seconds: float | None
    """Training time of a trial alone on this machine, without evaluation; None if not asked for."""
    measured: bool
    """Whether the time was measured, or scaled by FLOPs from a cell that was."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        selection = self.cell.spec.model.token_selection
        return {
            "cell": self.cell.name,
            "baseline": self.cell.is_baseline,
            "overrides": self.cell.overrides,
            "keep_ratio": selection.keep_ratio,
            "mean_keep_ratio": selection.mean_keep_ratio,
            "trials": self.trials,
            "steps": self.steps,
            # Too few images for a pace: JSON has no NaN.
            "seconds_a_trial": self.seconds if math.isfinite(self.seconds or 0.0) else None,
            "measured": self.measured,
        } | self.cost.metrics()


def estimate(plan: Plan, measure: bool) -> list[Estimate]:
    """Count every cell of a plan, and time a few training steps of as many as a short while allows.

    Args:
        plan: the plan.
        measure: whether to time steps at all.

    Raises:
        DataError: a data set cannot be used.
    """
    found: list[Estimate] = []
    timed: tuple[float, int] | None = None  # seconds an image, MACs of the cell it was measured on
    deadline = time.monotonic() + _MEASURING_SECONDS
    opened: dict[str, tuple[DetectionDataset, DetectionDataset]] = {}
    for cell in plan.cells:
        spec = cell.spec
        data = spec.data.model_dump_json()
        if data not in opened:
            opened[data] = build_datasets(spec.data)
        train_set, val_set = opened[data]
        model = model_without_memory(spec.model, len(train_set.class_names))
        cost = mean_cost(model, evaluation_shapes(val_set, spec.data))
        batch_size = spec.training.batch_size
        loader = build_train_loader(train_set, spec.data, batch_size=batch_size, seed=0)
        steps = len(loader) * spec.training.epochs
        measured = measure and (timed is None or time.monotonic() < deadline)
        if measured:
            timed = (seconds_per_image(spec, train_set), cost.total_macs)
        seconds = None
        if timed:
            pace, macs = timed
            seconds = pace * cost.total_macs / macs * steps * batch_size
        trials = sum(trial.cell == cell.name for trial in plan.trials)
        found.append(Estimate(cell, trials, cost, steps, seconds, measured))
    return found


def seconds_per_image(spec: TrialSpec, train_set: DetectionDataset) -> float:
    """Median time of a training image over a few steps of a fresh model on this machine."""
    torch.set_num_threads(spec.compute.threads)
    device = choose_device(spec.compute)
    num_classes = len(train_set.class_names)
    model = build_model(spec.model, num_classes, load_backbone=False).to(device).train()
    criterion = build_criterion(spec.model, num_classes)
    micro = max(1, spec.training.batch_size // spec.training.accumulation)
    loader = build_train_loader(train_set, spec.data, batch_size=micro, seed=0, workers=0)
    loader.set_epoch(0)
    seconds = []
    start = time.perf_counter()
    for number, batch in enumerate(loader):
        batch = batch.to(device)
        losses = criterion(
            model(batch.images, batch.sizes, batch.targets), batch.targets, batch.sizes
        )
        torch.autograd.backward(criterion.total(losses))
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number > 0:
            seconds.append((time.perf_counter() - start) / len(batch.image_ids))
        start = time.perf_counter()
        if number == _STEPS:
            break
    return statistics.median(seconds) if seconds else float("nan")
