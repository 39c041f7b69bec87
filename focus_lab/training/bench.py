"""Where the time of a training step goes, and what the fast settings save of it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, cast

import torch
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile

from focus_lab.data.dataset import DetectionDataset, build_dataset
from focus_lab.data.loader import Batch, TrainLoader, build_eval_loader, build_train_loader
from focus_lab.errors import UserError
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focus_detr import build_model
from focus_lab.ops.clock import device_name
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.model import Ops
from focus_lab.training.average import WeightAverage
from focus_lab.training.environment import choose_device
from focus_lab.training.evaluation import evaluate
from focus_lab.training.laps import PHASES, Laps, medians
from focus_lab.training.loop import AUTOCAST, Progress, TrainingLoop
from focus_lab.training.optimization import LearningRate, build_optimizer, parameter_groups
from focus_lab.training.scoring import Evaluator

PLAIN = "plain PyTorch"
"""The other setting: reference operators, channels first, AdamW as torch chooses it, images loaded
by the training process, memory not pinned, AP by pycocotools. What it computes is the same up to
rounding."""

_PREFETCHED = 2
"""Batches that torch's loader keeps ready for each of its processes."""


def bench_train(
    spec: TrialSpec,
    steps: int = 10,
    rounds: int = 3,
    on_round: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time the steps of a trial's training, as it is and in plain PyTorch, in turn.

    Args:
        spec: the trial.
        steps: counted steps of a round, of each setting.
        rounds: turns of each setting.
        on_round: told what is being run.

    Returns:
        The content of `bench train --json`: rows of medians for the whole step and for each of
        `PHASES`, whose `ratio` is None where a part takes no time; `evaluation`, of a validation
        image, over as many images as a round trains; `images_per_second`, `idle_share` and
        `peak_memory_mib` of both settings; the last is that of a GPU, None on a CPU, whose memory
        both share.

    Raises:
        UserError: an argument is below 1, or the data cannot be used.
    """
    for name, number in (("steps", steps), ("rounds", rounds)):
        if number < 1:
            raise UserError(f"--{name}: must be at least 1, got {number}")
    torch.set_num_threads(spec.compute.threads)
    device = choose_device(spec.compute)
    # Each has a data set of its own: one keeps what it has read or painted.
    contenders = {
        name: _Contender(
            spec,
            build_dataset(spec.data, "train"),
            _FirstImages(build_dataset(spec.data, "val"), steps * spec.training.batch_size),
            device,
            plain=name == PLAIN,
        )
        for name in ("ours", PLAIN)
    }
    for number in range(rounds):
        for name, contender in contenders.items():
            on_round(f"round {number + 1} of {rounds}: {name}")
            contender.run(steps)
            contender.evaluate()
    found = {name: medians(contender.steps) for name, contender in contenders.items()}
    ours, plain = found.values()
    evaluated = [one.evaluation_ms for one in contenders.values()]
    height, width = contenders["ours"].canvas
    return {
        "bench": "train",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"torch": version("torch")},
        "operators": {name: one.loop.model.implementation for name, one in contenders.items()},
        "loader_workers": {name: one.loader_workers for name, one in contenders.items()},
        "images_per_second": {name: one.images_per_second for name, one in contenders.items()},
        "idle_share": {name: one.idle_share for name, one in contenders.items()},
        "peak_memory_mib": {name: one.peak_memory_mib for name, one in contenders.items()},
        "evaluation": {
            "images": contenders["ours"].evaluated,
            "ours_ms": evaluated[0],
            "against_ms": evaluated[1],
            "ratio": evaluated[1] / evaluated[0],
        },
        "rows": [
            {
                "case": f"batch {spec.training.batch_size}, {height} x {width}",
                "dtype": spec.training.precision,
                "direction": phase,
                "against": PLAIN,
                "ours_ms": 1000 * ours[phase],
                "against_ms": 1000 * plain[phase],
                "ratio": plain[phase] / ours[phase] if ours[phase] else None,
            }
            for phase in ("step", *PHASES)
        ],
    }


class _Contender:
    """A model that trains in one setting, and what was measured of it."""

    def __init__(
        self,
        spec: TrialSpec,
        dataset: DetectionDataset,
        validation: _FirstImages,
        device: torch.device,
        plain: bool,
    ) -> None:
        training = spec.training
        self._spec, self._validation = spec, validation
        self._device, self._batch_size = device, training.batch_size
        self._laps = Laps(device)
        self.loader_workers = 0 if plain else spec.compute.loader_workers
        loader = build_train_loader(
            dataset,
            spec.data,
            batch_size=training.batch_size,
            seed=spec.seed,
            workers=self.loader_workers,
            pin_memory=device.type == "cuda" and not plain,
        )
        self._validation_batches = build_eval_loader(
            validation.dataset,
            spec.data,
            batch_size=training.evaluation_batch_size,
            workers=self.loader_workers,
            indices=range(validation.count),
            pin_memory=device.type == "cuda" and not plain,
        )
        self._evaluator: Evaluator = "pycocotools" if plain else spec.compute.evaluator
        self._batches = _SomeBatches(loader, self._laps)
        model_spec = spec.model
        if plain:
            model_spec = model_spec.model_copy(update={"ops": Ops(implementation="reference")})
        num_classes = len(dataset.class_names)
        torch.manual_seed(spec.seed)
        model = build_model(model_spec, num_classes, load_backbone=False).to(device)
        optimizer = build_optimizer(model, training.optimizer)
        if plain:
            model.memory_format = torch.contiguous_format
            recipe = training.optimizer
            optimizer = AdamW(parameter_groups(model, recipe), betas=recipe.betas, eps=recipe.eps)
        total_steps = len(loader) * training.epochs
        self.loop = TrainingLoop(
            model,
            build_criterion(model_spec, num_classes),
            optimizer,
            LearningRate(optimizer, training.schedule, total_steps, len(loader)),
            cast(TrainLoader, self._batches),
            training,
            spec.seed,
            device,
            WeightAverage(model, training.ema) if training.ema.enabled else None,
            lambda: None,
        )
        self._laps.follow(self.loop)
        self._seconds: list[float] = []
        self._idle: list[float] = []
        self._evaluations: list[float] = []
        self.peak_memory_mib: float | None = None
        """Most that was allocated on the GPU at a time, without what the other setting keeps."""

    @property
    def steps(self) -> list[dict[str, float]]:
        """Seconds by phase of every counted step."""
        return self._laps.steps

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) of the last batch."""
        return self._batches.canvas

    @property
    def images_per_second(self) -> float:
        """Median over the rounds."""
        return self._batch_size / statistics.median(self._seconds)

    @property
    def idle_share(self) -> float:
        """Share of the time in which a GPU has nothing to do, or a CPU waits for images; median."""
        return statistics.median(self._idle)

    def run(self, steps: int) -> None:
        """Measure a round, after a few steps for warmth.

        Loader processes fill their queue while the other setting has its turn: these batches are
        used up before anything counts.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            others = torch.cuda.memory_allocated(self._device) - self._kept_bytes()
        self._train(2 + _PREFETCHED * self.loader_workers)
        if self._device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated(self._device) - others) / 2**20
            self.peak_memory_mib = max(peak, self.peak_memory_mib or 0.0)
            # The stopwatch waits for the device, and so undoes the overlap of its work with
            # Python's: pace and idle share come from steps without it.
            self._seconds.append(self._train(steps) / steps)
            with profile(activities=[ProfilerActivity.CUDA]) as found:
                seconds = self._train(steps)
            busy = sum(event.self_device_time_total for event in found.key_averages()) / 1e6
            self._idle.append(max(0.0, 1 - busy / seconds))
        before = len(self.steps)
        self._laps.running = True
        seconds = self._train(steps)
        self._laps.running = False
        if self._device.type != "cuda":
            self._seconds.append(seconds / steps)
            self._idle.append(sum(step["data"] for step in self.steps[before:]) / seconds)

    @property
    def evaluated(self) -> int:
        """Images of an evaluation."""
        return self._validation.count

    @property
    def evaluation_ms(self) -> float:
        """Of a validation image: loaded, predicted, and its share of AP; median."""
        return 1000 * statistics.median(self._evaluations) / self._validation.count

    def evaluate(self) -> None:
        """Measure an evaluation; before the first one, its loader processes are started."""
        if not self._evaluations:
            self._evaluate()
        begin = time.perf_counter()
        self._evaluate()
        self._evaluations.append(time.perf_counter() - begin)

    def _evaluate(self) -> None:
        evaluate(
            self.loop.model,
            self._spec.model,
            self._validation_batches,
            cast(DetectionDataset, self._validation),
            self._device,
            AUTOCAST[self._spec.training.precision],
            self._evaluator,
        )

    def _kept_bytes(self) -> int:
        """Of the model, its gradients and the optimizer's state, which stay between steps."""
        model = self.loop.model
        kept = [*model.parameters(), *model.buffers()]
        kept += [p.grad for p in model.parameters() if p.grad is not None]
        for state in self.loop.optimizer.state.values():
            kept += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.nbytes for tensor in kept if tensor.device.type == self._device.type)

    def _train(self, steps: int) -> float:
        """Seconds that it took."""
        self._batches.count = steps
        start = time.perf_counter()
        self.loop.run_epoch(Progress())
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start


class _FirstImages:
    """What evaluation asks of a data set, for its first images alone."""

    def __init__(self, dataset: DetectionDataset, most: int) -> None:
        self.dataset = dataset
        self.count = min(most, len(dataset))
        self.category_ids = dataset.category_ids
        truth = dataset.coco_ground_truth()
        images = truth["images"][: self.count]
        known = {image["id"] for image in images}
        boxes = [box for box in truth["annotations"] if box["image_id"] in known]
        self._truth = truth | {"images": images, "annotations": boxes}

    def coco_ground_truth(self) -> dict[str, Any]:
        """Of these images."""
        return self._truth


class _SomeBatches:
    """A loader whose epochs are as long as one likes; they continue where the last one ended."""

    def __init__(self, loader: TrainLoader, laps: Laps) -> None:
        self.count = 1
        self.canvas = (0, 0)
        self._laps = laps
        self._length = len(loader)
        self._endless = _all_epochs(loader)

    def __len__(self) -> int:
        """Of a real epoch: the learning rate counts by it."""
        return self._length

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Has no effect."""

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.count):
            self._laps.begin_step()
            batch = next(self._endless)
            self._laps.lap("data")
            self.canvas = (batch.images.shape[-2], batch.images.shape[-1])
            yield batch
            self._laps.end_step()


def _all_epochs(loader: TrainLoader) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader
