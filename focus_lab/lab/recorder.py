"""The recorder: writes down what an executor says of its trials, and loses none of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from focus_lab.errors import StoreError, TrackerError, TrackerUnreachableError, UserError
from focus_lab.lab.early_stopping import Rungs
from focus_lab.lab.failure import Failure
from focus_lab.lab.patience import Patience
from focus_lab.lab.progress import Progress
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import StaleTrialError, Store, Trial
from focus_lab.lab.tracking import Tracker
from focus_lab.training.folder import MANIFEST, SAMPLES, STOPPED, storage_url

_TRACKER_PAUSE_S = 60.0

_OF_THE_INSTALLATION = ("CompiledOpError",)
"""Failures that say nothing of a trial: it is put back, and the sweep ends with their sentence."""


class Recorder:
    """An executor's listener that writes to store, tracker and progress.

    Args:
        store: life cycle.
        tracker: numbers and files.
        progress: shown meanwhile.
        on_last_start: called in a thread of its own when no trial waits any more.
        on_success: called when a trial has succeeded.
        patience: with store and tracker.
        rungs: decide which trials stop early; None lets all run to their end.
    """

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        progress: Progress,
        on_last_start: Callable[[], None],
        on_success: Callable[[], None],
        patience: Patience,
        rungs: Rungs | None = None,
    ) -> None:
        self._rungs = rungs
        self._store, self._tracker, self._progress = store, tracker, progress
        self._patience = patience
        self._ask_tracker_at = 0.0
        self._trials: dict[str, Trial] = {}
        self._waiting: set[str] = set()
        self._first_epoch_due: set[str] = set()
        self._noted = False
        self._on_last_start, self._on_success = on_last_start, on_success

    def add(self, trial: Trial) -> None:
        """A trial that will be carried out."""
        self._trials[trial.id] = trial
        self._waiting.add(trial.id)

    def started(self, trial_id: str) -> None:
        """A worker begins, for the first time or after another was lost."""
        trial = self._trials[trial_id]
        if trial.state is TrialState.RUNNING:
            trial = self._move(trial, TrialState.PENDING)
        self._move(trial, TrialState.RUNNING)
        self._track(lambda: self._tracker.start_run(_run_id(trial)))
        shown = self._progress.trials[trial_id]
        shown.state, shown.started_at = TrialState.RUNNING.value, time.monotonic()
        self._first_epoch_due.add(trial_id)
        self._progress.changed(shown, "started")
        if self._waiting == {trial_id}:
            threading.Thread(target=self._on_last_start, daemon=True).start()
        self._waiting.discard(trial_id)

    def again(self, trial_id: str, failure: Failure) -> None:
        """Say why."""
        self._progress.note(f"{self._progress.trials[trial_id].name}: {failure.message}")

    def epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        """Log the epoch, and stop the trial with it if it is one of the weak."""
        # First: what is decided now is not decided again after the death of this process.
        self._stop_early(trial_id, epoch, metrics)
        run_id = _run_id(self._trials[trial_id])
        self._track(lambda: self._tracker.log_epoch(run_id, epoch, metrics))
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

    def _stop_early(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        if self._rungs is None:
            return
        shown = self._progress.trials[trial_id]
        if self._rungs.tell(trial_id, epoch, metrics, shown.epochs):
            # A folder that is not here is not shared: nobody there would see the file.
            with contextlib.suppress(OSError):
                (shown.folder / STOPPED).write_text(f"early, after epoch {epoch}\n")

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
        shown = self._progress.trials[trial_id]
        self._patience(lambda: self._log_all(trial, shown.folder, history))
        self._ask_tracker_at = 0.0
        self._move(trial, TrialState.SUCCEEDED)
        shown.state, shown.ended_at = TrialState.SUCCEEDED.value, time.monotonic()
        shown.epoch = history[-1][0] if history else shown.epochs
        if history:
            shown.ap = history[-1][1].get("coco/AP")
        early = shown.epoch < shown.epochs
        self._progress.changed(shown, f"stopped early, epoch {shown.epoch}" if early else "done")
        self._on_success()

    def failed(self, trial_id: str, failure: Failure) -> None:
        """Record why.

        Raises:
            UserError: the installation is to blame: the next trial would fail like this one.
        """
        trial = self._trials[trial_id]
        if failure.kind in _OF_THE_INSTALLATION:
            raise UserError(failure.message)
        self._track(lambda: self._tracker.end_run(_run_id(trial), TrialState.FAILED))
        self._move(trial, TrialState.FAILED, failure=failure.kind, message=failure.message)
        shown = self._progress.trials[trial_id]
        shown.state, shown.ended_at = TrialState.FAILED.value, time.monotonic()
        shown.message = failure.message
        self._progress.changed(shown, f"failed: {failure.message}")

    def note(self, text: str) -> None:
        """Say it."""
        self._progress.note(text)

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

    def _move(self, trial: Trial, state: TrialState, **details: str) -> Trial:
        """Change the state, whatever it takes: nothing else says how the trial stands."""
        tried = 0

        def move() -> Trial:
            nonlocal tried
            tried += 1
            try:
                return self._store.move(trial, state, **details)
            except StaleTrialError:
                # The connection may have broken between the change and the answer. The lease is
                # ours, so nobody else has made this change.
                trials = self._store.trials(trial.experiment_id, planned_only=False)
                now = next(found for found in trials if found.id == trial.id)
                if tried > 1 and (now.state, now.version) == (state, trial.version + 1):
                    return now
                raise

        moved = self._trials[trial.id] = self._patience(move)
        return moved

    def _track(self, call: Callable[[], None]) -> None:
        """Tell the tracker, if it answers: what it misses it is told when the trial succeeds.

        One that does not answer is left alone for a while: trials wait until an epoch is told.
        """
        if time.monotonic() < self._ask_tracker_at:
            return
        try:
            call()
        except TrackerUnreachableError as error:
            if not self._ask_tracker_at:
                self._progress.note(f"{error}; trials go on, their numbers are kept and told later")
            self._ask_tracker_at = time.monotonic() + _TRACKER_PAUSE_S
        else:
            self._ask_tracker_at = 0.0

    def _log_all(
        self, trial: Trial, folder: Path, history: list[tuple[int, dict[str, float]]]
    ) -> None:
        """Every number and file of a trial; may be repeated without harm."""
        run_id = _run_id(trial)
        _bring(trial, folder)
        for epoch, metrics in history:
            self._tracker.log_epoch(run_id, epoch, metrics)
        if manifest := _read_manifest(folder):
            self._tracker.log_manifest(run_id, manifest)
        self._tracker.log_files(run_id, folder / SAMPLES, SAMPLES)
        self._tracker.end_run(run_id, TrialState.SUCCEEDED)


def _bring(trial: Trial, folder: Path) -> None:
    """Fetch the files of a trial that was trained on a machine with another file system."""
    url = storage_url(trial.spec, folder)
    if url is None or (folder / MANIFEST).is_file():
        return
    # Here and not above: it needs torch, which a driver does without otherwise.
    from focus_lab.training.storage import Storage

    Storage(url).fetch_results(folder)


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
