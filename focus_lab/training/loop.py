"""One epoch of training: batches in parts, gradients, steps; what is measured on the way."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from focus_lab.data.loader import Batch, TrainLoader
from focus_lab.data.streams import Stream, stream_seed
from focus_lab.errors import NonFiniteLossError
from focus_lab.model.criterion import Criterion
from focus_lab.model.denoising import BatchShare
from focus_lab.model.distillation import distillation_loss
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.model.output import ModelOutput
from focus_lab.specs.training import TrainingSpec
from focus_lab.training.average import WeightAverage
from focus_lab.training.elastic import ElasticDetector, drawn_keep_ratio
from focus_lab.training.optimization import LearningRate
from focus_lab.training.reporter import Metrics
from focus_lab.training.workers import ALONE, Workers

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""spec.precision -> autocast type."""
_OF_SMALLER = ("loss/smaller", "loss/distillation")
"""What only the steps with a second, smaller ratio have."""


@dataclass
class Progress:
    """Where training stands; a checkpoint has it."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches done in the running epoch; each is an optimizer step, unless a scaler skips it."""
    step: int = 0
    """Optimizer steps done."""
    averages: dict[str, float] = field(default_factory=dict)
    """Sums over the running epoch, of all workers, as far as they are collected."""
    since: dict[str, float] = field(default_factory=dict)
    """This worker's sums since then; not in a checkpoint, before which they are collected."""

    def add(self, numbers: Mapping[str, float]) -> None:
        """Sum up more of the running epoch."""
        for name, number in numbers.items():
            self.since[name] = self.since.get(name, 0.0) + number


class TrainingLoop:
    """Runs epochs of one model.

    Args:
        model: the detector.
        criterion: its losses.
        optimizer: with the recipe's groups.
        learning_rate: sets the groups' rates before each step.
        loader: training batches; one an optimizer step, this worker's part of it.
        spec: the recipe.
        seed: the trial's.
        device: where the model is.
        average: averaged weights, or None.
        on_step: called after every optimizer step that was not skipped.
        workers: all workers of the trial.
        parts: into how many smaller ones each micro-batch of the spec is divided.
    """

    def __init__(
        self,
        model: FocusDETR,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        learning_rate: LearningRate,
        loader: TrainLoader,
        spec: TrainingSpec,
        seed: int,
        device: torch.device,
        average: WeightAverage | None,
        on_step: Callable[[], None],
        workers: Workers = ALONE,
        parts: int = 1,
    ) -> None:
        self.model = model
        self.workers = workers
        self.accumulation = spec.accumulation * parts
        self.elastic = spec.elastic if spec.elastic.enabled else None
        self.wrapped = workers.wrap(ElasticDetector(model) if self.elastic else model)
        self.seed = seed
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
        self.steps_per_epoch = len(loader)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def run_epoch(self, progress: Progress) -> Metrics:
        """Train to the end of the running epoch, from wherever it stands.

        Returns:
            Means of the epoch: `loss/*`, `train/*`.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; the images are named.
        """
        # Through the wrapper, which keeps a mode of its own.
        self.wrapped.train()
        self.loader.set_epoch(progress.epoch, start_batch=progress.batch)
        counted = asked = time.perf_counter()
        self.workers.goes_on("waiting for a batch")
        for batch in self.loader:
            got = time.perf_counter()
            self.workers.goes_on("computing a step")
            stepped = self._step(batch, progress)
            # With the sums, because a resumed epoch is timed over all of its attempts.
            done = time.perf_counter()
            progress.add({"seconds": done - counted, "waited": got - asked})
            counted = done
            if stepped:
                self.on_step()
            self.workers.goes_on("waiting for a batch")
            asked = time.perf_counter()
        progress.add({"seconds": time.perf_counter() - counted})
        self.collect(progress)
        metrics: Metrics = self.workers.broadcast(self._means(progress))
        metrics |= {
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/steps": float(progress.step),
            "train/accumulation": float(self.accumulation),
        }
        progress.epoch, progress.batch, progress.averages = progress.epoch + 1, 0, {}
        return metrics

    def collect(self, progress: Progress) -> None:
        """Add what every worker has summed up to the first one's averages; all must call it."""
        size = self.workers.size
        # A worker's losses are its share of the batch's; the rest is one worker's of many.
        mine = {n: v if n.startswith("loss/") else v / size for n, v in progress.since.items()}
        for name, value in self.workers.sum_of(mine).items():
            progress.averages[name] = progress.averages.get(name, 0.0) + value
        progress.since = {}

    def mean_loss(self, progress: Progress) -> float:
        """Mean of the total loss over the running epoch, as far as this worker knows."""
        here = progress.since.get("loss/total", 0.0) * self.workers.size
        return (progress.averages.get("loss/total", 0.0) + here) / max(1, progress.batch)

    def _means(self, progress: Progress) -> Metrics:
        """Means of an epoch whose sums have been collected."""
        sums, batches = dict(progress.averages), progress.batch
        seconds, waited = sums.pop("seconds", 0.0), sums.pop("waited", 0.0)
        # These losses are those of some of the steps.
        counts = dict.fromkeys(_OF_SMALLER, sums.pop("with_smaller", 0.0))
        return {name: value / max(1, counts.get(name, batches)) for name, value in sums.items()} | {
            "train/images_per_second": batches * self.spec.batch_size / max(seconds, 1e-9),
            "train/data_share": waited / max(seconds, 1e-9),
            "train/seconds": seconds,
        }

    def _step(self, batch: Batch, progress: Progress) -> bool:
        """One optimizer step: the gradient is that of the whole batch, whatever its parts.

        Returns:
            Whether the weights changed: a scaler skips a step whose scaled gradient overflows.
        """
        steps, step = progress.step, progress.epoch * self.steps_per_epoch + progress.batch
        rank = self.workers.rank
        # Nothing depends on what was drawn before: a resumed run draws as an uninterrupted one.
        torch.manual_seed(stream_seed(Stream.DROPOUT, step, rank, self.seed))
        noise = stream_seed(Stream.NOISE, step, 0, self.seed)
        counts = [len(target["labels"]) for target in batch.targets]
        height, width = batch.images.shape[-2:]
        everybodys = self.workers.all_counts([sum(counts), max(counts), height, width])
        # On one canvas, as together: padding is seen by norms and by the loss of the scorer.
        batch = batch.on_canvas(max(e[2] for e in everybodys), max(e[3] for e in everybodys))
        boxes, most = sum(e[0] for e in everybodys), max(e[1] for e in everybodys)
        before = sum(e[0] for e in everybodys[:rank])
        smaller = self._smaller_keep_ratio(step)
        self.workers.goes_on("computing gradients")
        numbers: dict[str, float] = {}
        parts = batch.split(self.accumulation)
        for number, part in enumerate(parts, start=1):
            share = BatchShare(before, boxes, most, noise)
            before += sum(len(target["labels"]) for target in part.targets)
            with contextlib.nullcontext() if number == len(parts) else self._unsynchronised():
                losses = self._backward(part, share, progress, smaller)
            for name, value in losses.items():
                numbers[name] = numbers.get(name, 0.0) + value
        numbers["with_smaller"] = float(smaller is not None)
        numbers["train/grad_norm"] = self._optimizer_step(batch, progress)
        progress.batch += 1
        progress.add(numbers)
        return progress.step > steps

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of a part that is not the last stay here: the last one's carry them along."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def _smaller_keep_ratio(self, step: int) -> float | None:
        """The second ratio of an elastic step; None in a step that has none."""
        selector = self.model.token_selector
        if self.elastic is None or selector is None or step % self.elastic.smaller_every_steps:
            return None
        least = self.elastic.least_keep_ratio
        return drawn_keep_ratio(least, selector.keep_ratio, step, self.seed)

    def _backward(
        self, part: Batch, share: BatchShare, progress: Progress, smaller: float | None
    ) -> dict[str, float]:
        """Add the gradient of a part; returns its losses, which sum up to those of the batch."""
        part = part.to(self.device)
        given = (part.images, part.sizes, part.targets, share, part.image_ids)
        with torch.autocast(
            self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            largest, small = (
                self.wrapped(*given, smaller) if self.elastic else (self.wrapped(*given), None)
            )
        losses = self._losses(largest, part, share, progress)
        total = self.criterion.total(losses)
        if self.elastic and small is not None:
            losses_of_smaller = self._losses(small, part, share, progress)
            counts = [len(target["labels"]) for target in part.targets]
            distillation = distillation_loss(largest, small, counts, share.boxes)
            total_of_smaller = self.criterion.total(losses_of_smaller)
            # A mean, so that learning rate and clipping mean what they do with one ratio.
            total = (total + total_of_smaller) / 2
            total = total + self.elastic.distillation_weight * distillation
            losses |= {"loss_smaller": total_of_smaller, "loss_distillation": distillation}
        # One transfer for everything that is logged, and for the check.
        names = ["loss/total", *(f"loss/{name.removeprefix('loss_')}" for name in losses)]
        values = torch.stack([total.detach(), *(loss.detach() for loss in losses.values())])
        numbers = dict(zip(names, values.double().tolist(), strict=True))
        if bad := [name for name, number in numbers.items() if not math.isfinite(number)]:
            raise self._not_finite(", ".join(bad), part, progress)
        # Gradients are means over workers, losses are shares of a sum.
        torch.autograd.backward(self.scaler.scale(total * self.workers.size))
        return numbers

    def _losses(
        self, output: ModelOutput, part: Batch, share: BatchShare, progress: Progress
    ) -> dict[str, torch.Tensor]:
        """Losses of a part, as shares of those of the whole batch."""
        try:
            # Class and box losses are divided by the boxes of the whole batch: parts add up.
            losses = self.criterion(output, part.targets, part.sizes, num_boxes=share.boxes)
        except NonFiniteLossError as error:
            raise self._not_finite("the matching cost", part, progress) from error
        if "loss_foreground" in losses:
            # A mean over images: each part counts by its images.
            losses["loss_foreground"] = losses["loss_foreground"] * (
                len(part) / self.spec.batch_size
            )
        return losses

    def _optimizer_step(self, batch: Batch, progress: Progress) -> float:
        """Change the weights; returns the norm of the gradient before clipping."""
        self.learning_rate.set_step(progress.step)
        self.scaler.unscale_(self.optimizer)
        clip = self.spec.optimizer.clip_norm
        norm = float(
            torch.nn.utils.clip_grad_norm_(self._parameters, float("inf") if clip is None else clip)
        )
        finite = math.isfinite(norm)
        if not finite and not self.scaler.is_enabled():
            raise self._not_finite("the gradient", batch, progress)
        # A scaler skips a step that is not finite by itself, and lowers its scale.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:
            progress.step += 1
            if self.average is not None:
                self.average.update(self.model, progress.step)
        return norm

    def _not_finite(self, what: str, batch: Batch, progress: Progress) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"training: {what} not finite at step {progress.step + 1}, in epoch "
            f"{progress.epoch + 1}, got images {list(batch.image_ids)}; "
            "lower training.optimizer.lr or look at these images"
        )
