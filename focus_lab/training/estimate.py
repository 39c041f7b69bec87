"""What a trial would cost before it runs: counted FLOPs, and time from a measured training step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.data.loader import Batch, build_train_loader
from focus_lab.model.criterion import Criterion, build_criterion
from focus_lab.model.focus_detr import FocusDETR, build_model
from focus_lab.specs.experiment import ExperimentSpec, TrialSpec
from focus_lab.specs.plan import Cell, Plan, num_trials
from focus_lab.training.cost import (
    Cost,
    evaluation_shapes,
    mean_cost,
    model_without_memory,
    peak_memory_mib,
    reset_peak_memory,
)
from focus_lab.training.environment import choose_device
from focus_lab.training.optimization import build_optimizer

_STEPS = 5
_MEASURING_SECONDS = 15.0
_NAMED = 3
"""How many cells a sentence names."""


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
    seconds: tuple[float, float] | None
    """Training time of a trial alone on this machine, without evaluation: if every step took as
    long as the fastest that was measured, and as the slowest. None if not asked for."""
    memory_mib: tuple[float, float] | None
    """Peak memory of the least and of the most demanding step: of the GPU's allocator, or of this
    process with all of its libraries. Later batches may need more. None if not asked for."""
    measured: bool
    """Whether it was measured. Otherwise time is scaled by FLOPs from a cell that was, and memory
    is the range of those that were."""

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
            "seconds_a_trial": self.seconds and list(self.seconds),
            "memory_mib": self.memory_mib and list(self.memory_mib),
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
    # Of ordinary and of elastic cells, one of which was measured: its pace and its MACs.
    timed: dict[bool, tuple[Pace, int]] = {}
    memory: dict[bool, tuple[float, float]] = {}
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
        elastic = spec.training.elastic.enabled
        measured = measure and (elastic not in timed or time.monotonic() < deadline)
        pace = measure_pace(spec, train_set) if measured else None
        if pace:
            timed[elastic] = (pace, cost.total_macs)
            low, high = memory.get(elastic, pace.memory_mib)
            memory[elastic] = min(low, pace.memory_mib[0]), max(high, pace.memory_mib[1])
        seconds = None
        if elastic in timed:
            known, macs = timed[elastic]
            images = cost.total_macs / macs * steps * batch_size
            seconds = (known.fastest * images, known.slowest * images)
        trials = sum(trial.cell == cell.name for trial in plan.trials)
        needed = pace.memory_mib if pace else memory.get(elastic)
        found.append(Estimate(cell, trials, cost, steps, seconds, needed, pace is not None))
    return found


def over_budget(spec: ExperimentSpec, plan: Plan, otherwise: str) -> str | None:
    """See whether an experiment fits its budget: all of its trials, done ones too.

    Args:
        spec: the experiment.
        plan: its whole plan.
        otherwise: what runs it all the same, for the sentence.

    Returns:
        A sentence if it may take longer, or if that cannot be known.
    """
    budget = spec.compute.budget_hours
    if budget is None:
        return None
    found = estimate(plan, measure=True)
    unknown = [one.cell.name for one in found if one.seconds is None]
    if unknown:
        named = ", ".join(unknown[:_NAMED]) + (", …" if len(unknown) > _NAMED else "")
        return (
            f"compute.budget_hours: cannot time {len(unknown)} of {len(found)} cells ({named}), "
            f"got too few images for two steps; take more images, a smaller batch, or {otherwise}"
        )
    # A search begins with a part of its trials.
    more = num_trials(spec) / len(plan.trials)
    low, high = (
        more * sum(one.trials * one.seconds[end] for one in found if one.seconds) / 3600
        for end in (0, 1)
    )
    if high <= budget:
        return None
    return (
        f"compute.budget_hours: the trials may train for {low:.2g} to {high:.2g} hours, got a "
        f"budget of {budget:g}; take fewer cells, seeds or epochs, raise it, or {otherwise}"
    )


@dataclass(frozen=True)
class Pace:
    """What training steps took."""

    fastest: float
    """Seconds an image in the fastest step."""
    slowest: float
    """Seconds an image in the slowest step."""
    memory_mib: tuple[float, float]
    """Peak of a step, least and most; see `Estimate`."""


def measure_pace(spec: TrialSpec, train_set: DetectionDataset) -> Pace | None:
    """A few training steps of a fresh model on this machine; None with too few images for two."""
    torch.set_num_threads(spec.compute.threads)
    device = choose_device(spec.compute)
    num_classes = len(train_set.class_names)
    model = build_model(spec.model, num_classes, load_backbone=False).to(device).train()
    criterion = build_criterion(spec.model, num_classes)
    # Its moments are a good part of the memory.
    optimizer = build_optimizer(model, spec.training.optimizer)
    micro = max(1, spec.training.batch_size // spec.training.accumulation)
    loader = build_train_loader(train_set, spec.data, batch_size=micro, seed=0, workers=0)
    loader.set_epoch(0)
    elastic = spec.training.elastic
    every = elastic.smaller_every_steps if elastic.enabled else 1
    # Seconds an image of steps without a smaller ratio, and of those that an elastic training has.
    alone: list[float] = []
    seconds: list[float] = []
    peaks: list[float] = []
    reset_peak_memory(device)
    start = time.perf_counter()
    for number, batch in enumerate(loader):
        batch = batch.to(device)
        smaller = elastic.enabled and (every == 1 or number % 2 == 1)
        torch.autograd.backward(_total_loss(spec, model, criterion, batch, smaller))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number > 0:
            took = alone if every > 1 and not smaller else seconds
            took.append((time.perf_counter() - start) / len(batch.image_ids))
            peaks.append(peak_memory_mib(device))
        reset_peak_memory(device)
        start = time.perf_counter()
        if number == _STEPS:
            break
    if not seconds:
        return None
    alone = alone or seconds
    fastest, slowest = ((end(seconds) + (every - 1) * end(alone)) / every for end in (min, max))
    return Pace(fastest, slowest, (min(peaks), max(peaks)))


def _total_loss(
    spec: TrialSpec, model: FocusDETR, criterion: Criterion, batch: Batch, smaller: bool
) -> torch.Tensor:
    """Of one pass, and where a smaller ratio joins of one in the middle of the range as well."""
    maps, levels = model.pyramid(batch.images, batch.sizes)

    def one_pass() -> torch.Tensor:
        output = model.detect(maps, levels, batch.sizes, batch.targets)
        return criterion.total(criterion(output, batch.targets, batch.sizes))

    total = one_pass()
    if smaller:
        largest = spec.model.token_selection.keep_ratio
        with model.keeping(math.sqrt(spec.training.elastic.least_keep_ratio * largest)):
            total = total + one_pass()
    return total
