"""One worker's life: build, resume, train, evaluate, checkpoint, report. Knows nothing of Ray."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.data.loader import build_eval_loader, build_train_loader
from focus_lab.errors import PreemptedError, WeightsError
from focus_lab.model.criterion import build_criterion
from focus_lab.model.focus_detr import FocusDETR
from focus_lab.specs.experiment import TrialSpec
from focus_lab.specs.metrics import reading
from focus_lab.training import checkpoint as checkpoints
from focus_lab.training.average import WeightAverage
from focus_lab.training.breakdown import FILE as BREAKDOWN
from focus_lab.training.checkpoint import Checkpoint
from focus_lab.training.cost import peak_memory_mib, reset_peak_memory, trial_costs
from focus_lab.training.detector import build_start
from focus_lab.training.effective import check_effective, check_kept
from focus_lab.training.environment import choose_device
from focus_lab.training.evaluation import evaluate
from focus_lab.training.folder import (
    BEST,
    MANIFEST,
    SAMPLES,
    STOPPED,
    check_same_inputs,
    checkpoint_folder,
    make_folder,
)
from focus_lab.training.loop import AUTOCAST, Progress, TrainingLoop
from focus_lab.training.machine import MachineLoad
from focus_lab.training.manifest import check_same_everywhere, input_digests, manifest_of
from focus_lab.training.notice import NoticeTimes
from focus_lab.training.optimization import LearningRate, build_optimizer, load_optimizer_state
from focus_lab.training.reporter import Metrics, Reporter
from focus_lab.training.samples import write_samples
from focus_lab.training.scoring import check_evaluator
from focus_lab.training.storage import Storage, checkpoint_name
from focus_lab.training.whole_file import sweep_partials, whole_file
from focus_lab.training.workers import ALONE, Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended."""

    history: list[tuple[int, Metrics]]
    """(epoch, metrics) of every epoch, from 1."""

    @property
    def metrics(self) -> Metrics:
        """Metrics of the last epoch."""
        return self.history[-1][1]


def fit(
    spec: TrialSpec,
    reporter: Reporter,
    folder: Path,
    workers: Workers = ALONE,
    parts: int = 1,
    storage: Storage | None = None,
) -> TrialResult:
    """Train one trial to its end, from its newest checkpoint when there is one.

    A resumed trial computes the same numbers, bit for bit on a CPU, as one never interrupted; and
    several workers the same as one, but for the order of sums.

    Args:
        spec: the trial.
        reporter: told about every epoch that this call trains; the result has earlier ones too.
        folder: the trial's folder; the first worker writes checkpoints, manifest and samples there.
        workers: all workers of the trial; each of them calls this.
        parts: into how many smaller ones each micro-batch of the spec is divided.
        storage: where the first worker keeps a second copy of all that; newer checkpoints there are
            gone on from.

    Raises:
        UserError: data, weights or folder cannot be used, or the folder is another trial's.
        NonFiniteLossError: the loss is not finite.
        EffectiveSpecError: the built model does not do what the spec says.
        PreemptedError: the machine is about to be taken back; there is a checkpoint of this step.
    """
    torch.set_num_threads(spec.compute.threads)
    device = choose_device(spec.compute)
    check_evaluator(spec.compute.evaluator)
    train_set, val_set = build_datasets(spec.data)
    torch.manual_seed(spec.seed)
    reset_peak_memory(device)
    model, fresh = build_start(spec, len(train_set.class_names))
    model.to(device)
    check_effective(spec, model)
    digests = input_digests(spec, train_set, val_set)
    check_same_everywhere(workers.gather(digests))
    costs: Metrics = {}
    saved = None
    if workers.first:
        make_folder(folder)
        for place in (folder, checkpoint_folder(folder)):
            sweep_partials(place)
        if storage:
            storage.fetch(MANIFEST, folder)
            for of_ratio in ("", *map(reading, _other_ratios(spec))):
                storage.fetch(f"{SAMPLES}/{of_ratio}{BREAKDOWN}", folder)
        saved = _resumed(checkpoint_folder(folder), storage)
        if saved is None:
            manifest = manifest_of(spec, model, train_set, val_set, workers)
            manifest["started_afresh"] = fresh
            with whole_file(folder / MANIFEST) as partial:
                partial.write_text(json.dumps(manifest, indent=1))
        else:
            check_same_inputs(folder, digests)
        if storage and (folder / MANIFEST).is_file():
            storage.send(folder / MANIFEST, MANIFEST)
        costs = trial_costs(model, val_set, spec)
        for ratio in _other_ratios(spec):
            with model.keeping(ratio):
                found = trial_costs(model, val_set, spec)
            costs |= {reading(ratio) + name: value for name, value in found.items()}
    trial = _Trial(
        spec,
        model,
        train_set,
        val_set,
        device,
        reporter,
        folder,
        workers,
        parts,
        storage,
    )
    saved, costs = workers.broadcast((saved, costs))
    trial.restore(saved)
    del saved  # as large as the model with its moments
    load = MachineLoad(workers, device)
    while trial.progress.epoch < spec.training.epochs and not trial.is_stopped(folder):
        metrics = trial.run_epoch() | costs | load.measure()
        check_kept(spec, metrics, spec.model.token_selection.keep_ratio)
        epoch = trial.progress.epoch
        trial.history.append((epoch, metrics))
        if epoch == spec.training.epochs or epoch % spec.compute.checkpoint_every == 0:
            trial.save()
        elif trial.is_best():
            trial.save_best()
        reporter.report(epoch, metrics)
    if trial.progress.epoch < spec.training.epochs:
        trial.save()
    if workers.first:
        with trial.evaluated_weights():
            workers.goes_on("writing samples")
            write_samples(model, val_set, spec, device, folder / SAMPLES)
            for ratio in _other_ratios(spec):
                with model.keeping(ratio):
                    write_samples(model, val_set, spec, device, folder / SAMPLES / reading(ratio))
        if storage:
            storage.send_folder(folder / SAMPLES, SAMPLES)
    return TrialResult(trial.history)


def _resumed(folder: Path, storage: Storage | None) -> Checkpoint | None:
    """The newest whole checkpoint, here or in the storage."""
    here = checkpoints.resumed(folder)
    if storage is None:
        return here
    for path in storage.newer_checkpoints(folder, here.step if here else -1):
        if found := checkpoints.load_or_put_aside(path):
            # The best one here is of an earlier attempt than the one there.
            storage.fetch(checkpoint_name(folder / BEST), folder.parent, again=True)
            return found
        storage.put_aside(path.name)
    # What ended the attempt before may have come before it was sent.
    for path in checkpoints.newest_and_best(folder):
        storage.send(path, checkpoint_name(path))
    return here


class _Trial:
    """The moving parts of one trial."""

    def __init__(
        self,
        spec: TrialSpec,
        model: FocusDETR,
        train_set: DetectionDataset,
        val_set: DetectionDataset,
        device: torch.device,
        reporter: Reporter,
        folder: Path,
        workers: Workers,
        parts: int,
        storage: Storage | None,
    ) -> None:
        training, loaders = spec.training, spec.compute.loader_workers
        self.spec, self.model, self.val_set, self.device = spec, model, val_set, device
        self.reporter = reporter
        self.folder, self.samples = checkpoint_folder(folder), folder / SAMPLES
        self.workers, self.storage = workers, storage
        self.notice = NoticeTimes(workers)
        self.progress = Progress()
        self.history: list[tuple[int, Metrics]] = []
        loader = build_train_loader(
            train_set,
            spec.data,
            batch_size=training.batch_size,
            seed=spec.seed,
            workers=loaders,
            rank=workers.rank,
            world_size=workers.size,
            pin_memory=device.type == "cuda",
        )
        self.eval_loader = build_eval_loader(
            val_set,
            spec.data,
            batch_size=training.evaluation_batch_size,
            workers=loaders,
            rank=workers.rank,
            world_size=workers.size,
            pin_memory=device.type == "cuda",
        )
        steps_per_epoch = len(loader)
        optimizer = build_optimizer(model, training.optimizer)
        self.average = WeightAverage(model, training.ema) if training.ema.enabled else None
        self.loop = TrainingLoop(
            model,
            build_criterion(spec.model, len(train_set.class_names)),
            optimizer,
            LearningRate(
                optimizer, training.schedule, steps_per_epoch * training.epochs, steps_per_epoch
            ),
            loader,
            training,
            spec.seed,
            device,
            self.average,
            self._after_step,
            workers,
            parts,
        )

    def run_epoch(self) -> Metrics:
        """Train an epoch, and evaluate when due."""
        metrics = self.loop.run_epoch(self.progress)
        training, epoch = self.spec.training, self.progress.epoch
        last = epoch == training.epochs
        if last or epoch % training.evaluate_every == 0:
            with self.evaluated_weights():
                metrics |= evaluate(
                    self.model,
                    self.spec.model,
                    self.eval_loader,
                    self.val_set,
                    self.device,
                    AUTOCAST[training.precision],
                    self.spec.compute.evaluator,
                    self.workers,
                    # Before the last checkpoint: whoever goes on from that evaluates no more.
                    breakdown=self.samples if last else None,
                )
            if last:
                metrics |= self._readings()
            if last and self.storage and self.workers.first:
                for file in self.samples.rglob(BREAKDOWN):
                    self.storage.send(file, f"{SAMPLES}/{file.relative_to(self.samples)}")
        metrics["cost/peak_memory_mib"] = peak_memory_mib(self.device)
        return metrics

    def _readings(self) -> Metrics:
        """AP and tokens at the other keep ratios that an elastic training answers for."""
        metrics: Metrics = {}
        for ratio in _other_ratios(self.spec):
            with self.evaluated_weights(), self.model.keeping(ratio):
                found = evaluate(
                    self.model,
                    self.spec.model,
                    self.eval_loader,
                    self.val_set,
                    self.device,
                    AUTOCAST[self.spec.training.precision],
                    self.spec.compute.evaluator,
                    self.workers,
                    breakdown=self.samples / reading(ratio),
                )
            check_kept(self.spec, found, ratio)
            found["tokens/keep_ratio"] = ratio
            metrics |= {reading(ratio) + name: value for name, value in found.items()}
        return metrics

    def is_stopped(self, folder: Path) -> bool:
        """Whether somebody who compares trials has seen enough of this one."""
        seen = self.progress.epoch > 0 and (folder / STOPPED).exists()
        return bool(self.workers.broadcast(seen))

    def evaluated_weights(self) -> _Swapped:
        """A context in which the model holds the weights that are evaluated: averaged, if any."""
        return _Swapped(self.model, self.average)

    def _after_step(self) -> None:
        progress, spec = self.progress, self.spec
        if progress.step % spec.training.log_every == 0:
            mean = self.loop.mean_loss(progress)
            steps = self.loop.steps_per_epoch
            self.reporter.progress(progress.epoch + 1, progress.batch, steps, mean)
        if self.notice.is_due(progress.step) and self.reporter.should_stop():
            self.save()
            if self.storage:
                self.storage.flush()
            # The first worker that leaves ends the others: they wait until all is sent.
            self.workers.broadcast(None)
            raise PreemptedError
        every = spec.compute.checkpoint_every_steps
        if every is not None and progress.step % every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of everything, as it stands; every worker must call it."""
        self.workers.goes_on("saving a checkpoint")
        self.loop.collect(self.progress)
        if not self.workers.first:
            return
        best = self.is_best()
        path = checkpoints.save(self._checkpoint(), self.folder, best=best)
        if self.storage:
            self.storage.send(path, checkpoint_name(path))
        if best:
            self._send_best()

    def save_best(self) -> None:
        """Write the checkpoint of the best epoch so far, which nothing goes on from."""
        self.workers.goes_on("saving a checkpoint")
        if self.workers.first:
            checkpoints.write(self._checkpoint(), self.folder / BEST)
            self._send_best()

    def _send_best(self) -> None:
        if self.storage:
            self.storage.send(self.folder / BEST, checkpoint_name(self.folder / BEST))

    def _checkpoint(self) -> Checkpoint:
        """Everything, as it stands."""
        return Checkpoint(
            spec=self.spec.model_dump(mode="json"),
            class_names=list(self.val_set.class_names),
            epoch=self.progress.epoch,
            batch=self.progress.batch,
            step=self.progress.step,
            model=self.model.state_dict(),
            optimizer=self.loop.optimizer.state_dict(),
            averages=self.progress.averages,
            history=self.history,
            ema=self.average.state if self.average else None,
            scaler=self.loop.scaler.state_dict(),
        )

    def is_best(self) -> bool:
        """Whether the epoch that has just ended has the highest AP of all."""
        found = [metrics["coco/AP"] for _, metrics in self.history if "coco/AP" in metrics]
        just_ended = self.progress.batch == 0 and bool(self.history)
        return just_ended and "coco/AP" in self.history[-1][1] and found[-1] >= max(found)

    def restore(self, saved: Checkpoint | None) -> None:
        """Go back to a checkpoint, if there is one."""
        if saved is None:
            return
        if _without_compute(saved.spec) != _without_compute(self.spec.model_dump(mode="json")):
            raise WeightsError(
                f"{self.folder}: holds checkpoints of another trial, got a spec that differs; "
                "choose another folder"
            )
        self.model.load_state_dict(saved.model)
        load_optimizer_state(self.loop.optimizer, saved.optimizer)
        if self.average and saved.ema:
            self.average.state = {k: v.to(self.device) for k, v in saved.ema.items()}
        if saved.scaler:
            self.loop.scaler.load_state_dict(saved.scaler)
        averages = saved.averages if self.workers.first else {}
        self.progress = Progress(saved.epoch, saved.batch, saved.step, averages)
        self.history = list(saved.history)
        newest = checkpoints.latest_path(self.folder)
        if self.workers.first and newest and self.is_best():
            # What ended the attempt before may have come before it was kept as such.
            checkpoints.keep_as_best(newest)
            self._send_best()


def _without_compute(spec: dict[str, Any]) -> dict[str, Any]:
    return {part: content for part, content in spec.items() if part != "compute"}


class _Swapped:
    """Puts averaged weights into a model for a while."""

    def __init__(self, model: FocusDETR, average: WeightAverage | None) -> None:
        self._model, self._average = model, average

    def __enter__(self) -> None:
        if self._average:
            self._kept = {k: v.clone() for k, v in self._model.state_dict().items()}
            self._model.load_state_dict(self._average.state)

    def __exit__(self, *_: object) -> None:
        if self._average:
            self._model.load_state_dict(self._kept)


def _other_ratios(spec: TrialSpec) -> list[float]:
    """Keep ratios beside its own that a trial is evaluated at."""
    trained = spec.model.token_selection.keep_ratio
    return [ratio for ratio in spec.training.elastic.evaluate_at if ratio != trained]
