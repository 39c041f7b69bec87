"""One epoch of training: micro-batches, gradients, steps; what is measured on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from focus_lab.data.loader import Batch, TrainLoader
from focus_lab.errors import NonFiniteLossError
from focus_lab.model.criterion import Criterion
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.specs.training import TrainingSpec
from focus_lab.training.average import WeightAverage
from focus_lab.training.optimization import LearningRate
from focus_lab.training.reporter import Metrics

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""spec.precision -> autocast type."""


@dataclass
class Progress:
    """Where training stands; everything here goes into a checkpoint."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Micro-batches done in the running epoch."""
    step: int = 0
    """Optimizer steps done."""
    averages: dict[str, float] = field(default_factory=dict)
    """Sums over the running epoch."""


class TrainingLoop:
    """Runs epochs of one model.

    Args:
        model: the detector.
        criterion: its losses.
        optimizer: with the recipe's groups.
        learning_rate: sets the groups' rates before each step.
        loader: training batches; a batch is one micro-batch.
        spec: the recipe.
        device: where the model is.
        average: averaged weights, or None.
        on_step: called after every optimizer step.
    """

    def __init__(
        self,
        model: FocusDETR,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        learning_rate: LearningRate,
        loader: TrainLoader,
        spec: TrainingSpec,
        device: torch.device,
        average: WeightAverage | None,
        on_step: Callable[[], None],
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.loader = loader
        self.spec = spec
        self.device = device
        self.average = average
        self.on_step = on_step
        self.autocast = AUTOCAST[spec.precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        # Batches that do not fill a step are left out: no gradient outlives its epoch.
        self.steps_per_epoch = len(loader) // spec.accumulation
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def run_epoch(self, progress: Progress) -> Metrics:
        """Train to the end of the running epoch, from wherever it stands.

        Returns:
            Means of the epoch: `loss/*`, `train/*`.

        Raises:
            NonFiniteLossError: a loss is not finite; the batch is named.
        """
        self.model.train()
        batches = self.steps_per_epoch * self.spec.accumulation
        self.loader.set_epoch(progress.epoch, start_batch=progress.batch)
        started, waited, images = time.perf_counter(), 0.0, 0
        tick = time.perf_counter()
        for batch in self.loader:
            waited += time.perf_counter() - tick
            self._micro_step(batch, progress)
            images += len(batch.image_ids)
            if progress.batch == batches:
                break
            tick = time.perf_counter()
        seconds = time.perf_counter() - started
        sums = progress.averages
        metrics = {name: value / max(1, progress.batch) for name, value in sums.items()}
        metrics |= {
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/images_per_second": images / max(seconds, 1e-9),
            "train/data_share": waited / max(seconds, 1e-9),
            "train/seconds": seconds,
            "train/steps": float(progress.step),
        }
        progress.epoch, progress.batch, progress.averages = progress.epoch + 1, 0, {}
        return metrics

    def _micro_step(self, batch: Batch, progress: Progress) -> None:
        accumulation = self.spec.accumulation
        batch = batch.to(self.device)
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            output = self.model(batch.images, batch.sizes, batch.targets)
        losses = self.criterion(output, batch.targets, batch.sizes)
        total = self.criterion.total(losses)
        # One transfer for everything that is logged, and for the check.
        names = ["loss/total", *(f"loss/{name.removeprefix('loss_')}" for name in losses)]
        values = torch.stack([total.detach(), *(loss.detach() for loss in losses.values())])
        numbers = dict(zip(names, values.double().tolist(), strict=True))
        if not values.isfinite().all():
            bad = ", ".join(name for name, number in numbers.items() if number - number != 0)
            raise NonFiniteLossError(
                f"training: {bad} not finite at step {progress.step + 1} of epoch {progress.epoch + 1}, "
                f"got images {list(batch.image_ids)}; lower training.optimizer.lr or look at these images"
            )
        self.scaler.scale(total / accumulation).backward()
        progress.batch += 1
        for name, number in numbers.items():
            progress.averages[name] = progress.averages.get(name, 0.0) + number
        if progress.batch % accumulation == 0:
            self._optimizer_step(progress)
            self.on_step()

    def _optimizer_step(self, progress: Progress) -> None:
        self.learning_rate.set_step(progress.step)
        self.scaler.unscale_(self.optimizer)
        clip = self.spec.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(
            self._parameters, float("inf") if clip is None else clip
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if self.average is not None:
            self.average.update(self.model, progress.step)
        key = "train/grad_norm"
        # Summed per step, divided by micro-batches at the end of the epoch: weigh accordingly.
        progress.averages[key] = (
            progress.averages.get(key, 0.0) + float(norm) * self.spec.accumulation
        )
