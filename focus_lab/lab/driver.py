"""The driver: the process that carries out an experiment. Store, tracker and executor meet here."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from focus_lab.errors import StoreError, TrackerError
from focus_lab.lab.executor import Executor, Failure, TrialJob
from focus_lab.lab.progress import Progress, TrialProgress
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial
from focus_lab.lab.tracking import Tracker
from focus_lab.training.folder import MANIFEST, SAMPLES


def trial_folder(experiment: Experiment, trial: Trial) -> Path:
    """Where a trial keeps its files: the fingerprint finds it, the rest of the name is for reading.

    A trial whose cell was renamed keeps its folder.
    """
    trials = experiment.folder / "trials"
    mark = trial.fingerprint[:8]
    for folder in sorted(trials.glob(f"*-{mark}")):
        return folder
    readable = "".join(c if c.isalnum() or c in "=.,-" else "_" for c in trial.name)[:80]
    return trials / f"{readable}-{mark}"


class Driver:
    """Carries out the trials of one experiment that are not done. Needs the experiment's lease.

    Args:
        store: life cycle.
        tracker: numbers and files.
        executor: carries out trials.
        progress: shown meanwhile.
        on_last_start: called in a thread of its own when no trial waits any more.
    """

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        executor: Executor,
        progress: Progress,
        on_last_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._tracker = store, tracker
        self._executor, self._progress = executor, progress
        self._on_last_start = on_last_start

    def carry_out(
        self, experiment: Experiment, only: Callable[[Trial], bool] = lambda _: True
    ) -> None:
        """Run what is pending; succeeded trials are left alone, interrupted ones go on.

        Args:
            experiment: recorded in the store.
            only: which trials may run.

        Raises:
            KeyboardInterrupt: a person interrupted; the same call goes on later.
        """
        tracking_id = self._tracker.ensure_experiment(experiment)
        self._store.set_tracking_id(experiment.id, tracking_id)
        for trial in self._store.trials(experiment.id, planned_only=False):
            self._reconcile(trial)
        reconciled = [t for t in self._store.trials(experiment.id) if only(t)]
        listener = _Listener(self._store, self._tracker, self._progress, self._on_last_start)
        jobs = []
        for trial in reconciled:
            shown = _shown(experiment, trial)
            self._progress.trials[trial.id] = shown
            if trial.state is not TrialState.PENDING:
                continue
            run_id = self._tracker.ensure_run(tracking_id, trial)
            listener.add(self._store.set_tracking_run(trial, run_id))
            jobs.append(TrialJob(trial.id, trial.name, trial.spec, shown.folder))
        if not jobs:
            return
        try:
            with self._progress:
                self._executor.run(jobs, listener)
        finally:
            listener.put_back()

    def _reconcile(self, trial: Trial) -> Trial:
        """With the lease in hand, a running trial is one whose driver died: it waits again."""
        if trial.state is TrialState.RUNNING:
            return self._store.move(trial, TrialState.PENDING)
        return trial


def _shown(experiment: Experiment, trial: Trial) -> TrialProgress:
    epochs = int(trial.spec["training"]["epochs"])
    shown = TrialProgress(trial.name, epochs, trial_folder(experiment, trial), trial.state.value)
    if trial.state is TrialState.SUCCEEDED:
        shown.epoch = epochs
    return shown


class _Listener:
    """Writes what happens to store, tracker and progress."""

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        progress: Progress,
        on_last_start: Callable[[], None],
    ) -> None:
        self._store, self._tracker, self._progress = store, tracker, progress
        self._trials: dict[str, Trial] = {}
        self._waiting: set[str] = set()
        self._first_epoch_due: set[str] = set()
        self._noted = False
        self._on_last_start = on_last_start

    def add(self, trial: Trial) -> None:
        """A trial that will be carried out."""
        self._trials[trial.id] = trial
        self._waiting.add(trial.id)

    def started(self, trial_id: str) -> None:
        """A worker begins, for the first time or after another was lost."""
        trial = self._trials[trial_id]
        if trial.state is TrialState.RUNNING:
            trial = self._store.move(trial, TrialState.PENDING)
        self._move(trial, TrialState.RUNNING)
        self._tracker.start_run(_run_id(trial))
        shown = self._progress.trials[trial_id]
        shown.state, shown.started_at = TrialState.RUNNING.value, time.monotonic()
        self._first_epoch_due.add(trial_id)
        self._progress.changed(shown, "started")
        if self._waiting == {trial_id}:
            threading.Thread(target=self._on_last_start, daemon=True).start()
        self._waiting.discard(trial_id)

    def again(self, trial_id: str, failure: Failure) -> None:
        """Say why; a new attempt begins."""
        self._progress.note(f"{self._progress.trials[trial_id].name}: {failure.message}")
        self.started(trial_id)

    def epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        """Log the epoch."""
        self._tracker.log_epoch(_run_id(self._trials[trial_id]), epoch, metrics)
        shown = self._progress.trials[trial_id]
        if trial_id in self._first_epoch_due:
            # A trial that goes on from a checkpoint says where it came in by its first epoch.
            self._first_epoch_due.remove(trial_id)
            shown.first_epoch = epoch - 1
            self._note_reference_operators(trial_id)
        shown.epoch = epoch
        shown.loss = metrics.get("loss/total", shown.loss)
        shown.ap = metrics.get("coco/AP", shown.ap)
        self._progress.changed(shown, f"epoch {epoch}/{shown.epochs}")

    def _note_reference_operators(self, trial_id: str) -> None:
        """Say once that a worker has no compiled operators: it is much slower for it."""
        if self._noted:
            return
        wanted = self._trials[trial_id].spec["model"]["ops"]["implementation"]
        manifest = _read_manifest(self._progress.trials[trial_id].folder)
        if wanted == "auto" and manifest.get("ops_implementation") == "reference":
            self._noted = True
            self._progress.note(
                "operators are not compiled for this machine, the slower reference is used; "
                "see `focus-lab doctor` for the remedy"
            )

    def succeeded(self, trial_id: str, history: list[tuple[int, dict[str, float]]]) -> None:
        """Log what is missing, upload the files, then call it done.

        In this order, so that a trial that the store calls succeeded has all of its numbers.
        """
        trial = self._trials[trial_id]
        run_id, shown = _run_id(trial), self._progress.trials[trial_id]
        for epoch, metrics in history:
            self._tracker.log_epoch(run_id, epoch, metrics)
        if manifest := _read_manifest(shown.folder):
            self._tracker.log_manifest(run_id, manifest)
        self._tracker.log_files(run_id, shown.folder / SAMPLES, SAMPLES)
        self._tracker.end_run(run_id, TrialState.SUCCEEDED)
        self._move(trial, TrialState.SUCCEEDED)
        shown.state, shown.ended_at = TrialState.SUCCEEDED.value, time.monotonic()
        shown.epoch = shown.epochs
        if history:
            shown.ap = history[-1][1].get("coco/AP")
        self._progress.changed(shown, "done")

    def failed(self, trial_id: str, failure: Failure) -> None:
        """Record why."""
        trial = self._trials[trial_id]
        self._tracker.end_run(_run_id(trial), TrialState.FAILED)
        self._trials[trial_id] = self._store.move(
            trial, TrialState.FAILED, failure=failure.kind, message=failure.message
        )
        shown = self._progress.trials[trial_id]
        shown.state, shown.ended_at = TrialState.FAILED.value, time.monotonic()
        shown.message = failure.message
        self._progress.changed(shown, f"failed: {failure.message}")

    def put_back(self) -> None:
        """Trials that neither succeeded nor failed wait for the next call."""
        for trial in self._trials.values():
            if trial.state is not TrialState.RUNNING:
                continue
            # Whatever ended the sweep is what the user must hear of; what cannot be put back now
            # is put back by the next call.
            with contextlib.suppress(StoreError, TrackerError):
                self._store.move(trial, TrialState.PENDING)
                self._tracker.end_run(_run_id(trial), TrialState.PENDING)

    def _move(self, trial: Trial, state: TrialState) -> None:
        self._trials[trial.id] = self._store.move(trial, state)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The trial's manifest; empty before there is one."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def _run_id(trial: Trial) -> str:
    assert trial.tracking_run_id is not None
    return trial.tracking_run_id
