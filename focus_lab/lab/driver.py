"""The driver: the process that carries out an experiment. Store, tracker and executor meet here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from focus_lab.lab.early_stopping import Rungs, rungs_of
from focus_lab.lab.executor import Executor, TrialJob
from focus_lab.lab.patience import Patience
from focus_lab.lab.progress import Progress, TrialProgress
from focus_lab.lab.recorder import Recorder
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Store, Trial
from focus_lab.lab.tracking import Curves, MissingRunError, Tracker
from focus_lab.training.folder import STOPPED


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
        on_success: called when a trial has succeeded.
        patience: with store and tracker.
    """

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        executor: Executor,
        progress: Progress,
        on_last_start: Callable[[], None] = lambda: None,
        on_success: Callable[[], None] = lambda: None,
        patience: Patience | None = None,
    ) -> None:
        self._store, self._tracker = store, tracker
        self._patience = patience or Patience(note=progress.note)
        self._executor, self._progress = executor, progress
        self._on_last_start, self._on_success = on_last_start, on_success

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
        patience = self._patience
        tracking_id = patience(lambda: self._tracker.ensure_experiment(experiment))
        patience(lambda: self._store.set_tracking_id(experiment.id, tracking_id))
        reconciled = [t for t in patience(lambda: self._reconciled(experiment)) if only(t)]
        rungs = rungs_of(experiment.spec)
        listener = Recorder(
            self._store,
            self._tracker,
            self._progress,
            on_last_start=self._on_last_start,
            on_success=self._on_success,
            patience=patience,
            rungs=rungs,
        )
        jobs = []
        for trial in reconciled:
            shown = _shown(experiment, trial)
            if rungs is None and trial.state is TrialState.PENDING:
                # Of an earlier sweep, which stopped trials early; this one does not.
                (shown.folder / STOPPED).unlink(missing_ok=True)
            elif rungs is not None and trial.tracking_run_id:
                patience(partial(self._tell_rungs, rungs, trial, shown.epochs))
            self._progress.trials[trial.id] = shown
            if trial.state is not TrialState.PENDING:
                continue
            listener.add(patience(partial(self._with_run, tracking_id, trial)))
            jobs.append(TrialJob(trial.id, trial.name, trial.spec, shown.folder))
        if not jobs:
            return
        try:
            with self._progress:
                self._executor.run(jobs, listener)
        finally:
            listener.put_back()

    def _tell_rungs(self, rungs: Rungs, trial: Trial, epochs: int) -> None:
        """Tell the rungs what the tracker knows of a trial from earlier calls."""
        curves: Curves = {}
        with contextlib.suppress(MissingRunError):
            curves = self._tracker.curves(trial.tracking_run_id or "")
        by_epoch: dict[int, dict[str, float]] = {}
        for name, points in curves.items():
            for epoch, value in points:
                by_epoch.setdefault(epoch, {})[name] = value
        for epoch in sorted(by_epoch):
            rungs.tell(trial.id, epoch, by_epoch[epoch], epochs)

    def _reconciled(self, experiment: Experiment) -> list[Trial]:
        """The planned trials; with the lease in hand, one that runs is one whose driver died."""
        for trial in self._store.trials(experiment.id, planned_only=False):
            if trial.state is TrialState.RUNNING:
                self._store.move(trial, TrialState.PENDING)
        return self._store.trials(experiment.id)

    def _with_run(self, tracking_id: str, trial: Trial) -> Trial:
        """The trial with its run in the tracker."""
        return self._store.set_tracking_run(trial, self._tracker.ensure_run(tracking_id, trial))


def _shown(experiment: Experiment, trial: Trial) -> TrialProgress:
    epochs = int(trial.spec["training"]["epochs"])
    shown = TrialProgress(trial.name, epochs, trial_folder(experiment, trial), trial.state.value)
    if trial.state is TrialState.SUCCEEDED:
        shown.epoch = epochs
    return shown
