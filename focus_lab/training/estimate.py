"""What a trial would cost before it runs: counted FLOPs, and time from a measured training step."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.data.loader import build_train_loader
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focus_detr import build_model
from focus_lab.specs.data import DataSpec
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.model import ModelSpec
from focus_lab.training.cost import Cost, mean_cost, model_without_memory
from focus_lab.training.environment import choose_device
from focus_lab.training.fit import evaluation_shapes

_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What one trial would take."""

    cost: Cost
    """One image at the data set's own sizes."""
    steps: int
    """Optimizer steps in all."""
    images: int
    """Training images in all, over the epochs."""


def open_data(spec: DataSpec) -> tuple[DetectionDataset, DetectionDataset]:
    """Training and validation images.

    Raises:
        DataError: they cannot be used.
    """
    return build_datasets(spec)


def check_model(spec: ModelSpec, num_classes: int) -> None:
    """Build the model once with its weights.

    Raises:
        WeightsError: a weight file is missing or does not fit.
    """
    build_model(spec, num_classes)


def estimate(spec: TrialSpec, train_set: DetectionDataset, val_set: DetectionDataset) -> Estimate:
    """Count a trial without running it."""
    model = model_without_memory(spec.model, len(train_set.class_names))
    cost = mean_cost(model, evaluation_shapes(val_set, spec.data))
    batch = spec.training.batch_size
    steps = len(train_set) // batch * spec.training.epochs
    return Estimate(cost, steps, steps * batch)


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
