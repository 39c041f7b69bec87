"""The lab: what the command line and the service call.

Everything outside enters by the constructor.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_lab.lab.driver import Driver, trial_folder
from focus_lab.lab.executor import Executor
from focus_lab.lab.failure import is_users
from focus_lab.lab.interim_report import InterimReport
from focus_lab.lab.lease import Lease
from focus_lab.lab.patience import Patience
from focus_lab.lab.progress import Progress
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.results import LATENCY, collect, last_values, latencies
from focus_lab.lab.search import next_points, points_of, told
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, LeaseHeldError, Store, Trial
from focus_lab.lab.tracking import MissingRunError, Tracker
from focus_lab.specs.experiment import ExperimentSpec, OptunaSearch
from focus_lab.specs.plan import Plan
from focus_lab.specs.plan import plan as make_plan
from focus_lab.training.folder import make_folder

if TYPE_CHECKING:
    from focus_lab.analysis.records import ExperimentRecord

_OF_THE_QUEUE = frozenset(state for state in QueueState if not state.is_terminal)


class Lab:
    """A store, a tracker, and a home for files.

    Args:
        store: life cycle of experiments and trials.
        tracker: numbers and files.
        home: folder under which every experiment has its own.
    """

    def __init__(self, store: Store, tracker: Tracker, home: Path) -> None:
        self.store, self.tracker, self.home = store, tracker, home.resolve()

    def sweep(
        self,
        spec: ExperimentSpec,
        plan: Plan,
        executor: Executor,
        progress: Progress,
        *,
        cells: tuple[str, ...] = (),
        leased: bool = False,
    ) -> Experiment:
        """Carry out an experiment to its report; again continues it.

        Args:
            spec: the experiment.
            plan: its whole plan.
            executor: carries out trials.
            progress: shown meanwhile.
            cells: names of the cells that may run now; empty runs all.
            leased: whether the caller holds the experiment's lease.

        Raises:
            LeaseHeldError: another process, or a service, carries it out; nothing was changed.
            KeyboardInterrupt: a person interrupted; nothing is lost.
        """
        folder = make_folder(self.home / spec.name)
        opened = self.store.open(spec, folder)
        if not leased and (state := self.store.queue_state(opened.id)) in _OF_THE_QUEUE:
            raise LeaseHeldError(
                f"experiment {spec.name}: belongs to a service's queue, got {state.lower()}; "
                "cancel it there first, give this one another name, or use --server"
            )
        with contextlib.nullcontext() if leased else Lease(self.store, opened.id):
            patience = Patience(note=progress.note)
            begun: Plan | None = patience(lambda: self._as_far_as_searched(spec, plan))
            retried = cells
            with InterimReport(lambda: self.report(opened.id)) as interim:
                driver = Driver(
                    self.store,
                    self.tracker,
                    executor,
                    progress,
                    on_last_start=_load_ahead,
                    on_success=interim.trial_ended,
                    patience=patience,
                )
                while begun is not None:
                    experiment = self.store.record(spec, begun, folder, retried)
                    driver.carry_out(experiment, lambda trial: not cells or trial.cell in cells)
                    # Once a call: the next batches leave what failed in this one as it is.
                    retried = tuple(cell.name for cell in begun.cells)
                    begun = None if cells else patience(lambda: self._next_plan(spec))
                    if begun is not None:
                        retried = tuple(c.name for c in begun.cells if c.name not in retried)
            patience(lambda: self._measure_latency(experiment))
            patience(lambda: self.report(experiment.name))
            return patience(lambda: self.store.experiment(spec.name))

    def _as_far_as_searched(self, spec: ExperimentSpec, plan: Plan) -> Plan:
        """The plan with the points that an interrupted search had chosen already."""
        known = self._points(spec)
        return make_plan(spec, points=list(known)) if known else plan

    def _next_plan(self, spec: ExperimentSpec) -> Plan | None:
        """The plan with the next batch of a search; None when there is none."""
        known = self._points(spec)
        if not known:
            return None
        chosen = next_points(spec, told(spec, known, self.record(spec.name)))
        return make_plan(spec, points=[*known, *chosen]) if chosen else None

    def _points(self, spec: ExperimentSpec) -> dict[int, str]:
        """Point -> cell of what a search has chosen so far; empty without a search."""
        if not isinstance(spec.sweep.search, OptunaSearch):
            return {}
        trials = self.store.trials(self.store.experiment(spec.name).id, planned_only=False)
        known = points_of(spec, trials)
        return dict(list(known.items())[: spec.sweep.search.samples])

    def record(self, name: str) -> ExperimentRecord:
        """An experiment's results as they stand."""
        return collect(self.store.experiment(name), self.store, self.tracker)

    def report(self, name: str) -> Path:
        """Write the report of an experiment as it stands; returns the page."""
        # Here and not above: plots and statistics take seconds to load, when Ray is being started.
        from focus_lab.analysis.report import write_report
        from focus_lab.analysis.tables import summary_metrics

        experiment = self.store.experiment(name)
        record = collect(experiment, self.store, self.tracker)
        page = write_report(record, make_folder(experiment.folder / "report"))
        # Only where the trials are: another tracker may give the same id to another experiment.
        if experiment.tracking_id and any(trial.curves for trial in record.trials):
            self.tracker.log_report(
                experiment.tracking_id, page.parent, summary_metrics(record), record.exploratory
            )
        return page

    def page(self, name: str) -> Path:
        """Where the report of an experiment is."""
        from focus_lab.analysis.report import PAGE

        return self.store.experiment(name).folder / "report" / PAGE

    def result(self, record: ExperimentRecord) -> dict[str, Any]:
        """Experiment, trials and cells as JSON data: what `sweep --json` prints.

        Each trial stands once, under the cell that was trained. `metrics` are those of its last
        epoch, with what an elastic one was read at as `at_RATIO/METRIC`. `exploratory` says why the
        experiment confirms nothing; empty when it may.
        """
        from focus_lab.analysis.tables import cells_as_json

        experiment = self.store.experiment(record.name)
        stored = {trial.id: trial for trial in self.store.trials(experiment.id)}
        metrics = last_values(record, stored)
        trials = []
        for trial in record.trainings:
            row = stored[trial.id]
            trials.append(
                {
                    "id": trial.id,
                    "cell": row.cell,
                    "seed": trial.seed,
                    "overrides": row.overrides,
                    "status": trial.state,
                    "attempts": row.attempts,
                    "metrics": metrics[trial.id],
                    "mlflow_run_id": row.tracking_run_id,
                    "failure": row.failure,
                    "failure_is_users": is_users(row.failure),
                    "message": trial.message,
                }
            )
        return {
            "experiment": {
                "id": experiment.id,
                "name": experiment.name,
                "folder": str(experiment.folder),
                "mlflow_experiment_id": experiment.tracking_id,
            },
            "exploratory": list(record.exploratory),
            "trials": trials,
            "cells": cells_as_json(record),
        }

    def _measure_latency(self, experiment: Experiment) -> None:
        """Measure the latency of each cell on a trial that was trained to its end; log it there.

        Nowhere else: the same number on every seed would look like a replicated one.
        """
        known = latencies(experiment.folder)
        trials = [t for t in self.store.trials(experiment.id) if t.state is TrialState.SUCCEEDED]
        chosen: dict[str, Trial] = {}
        # First those that have one, so that a new measurement replaces it in the tracker.
        for trial in sorted(trials, key=lambda trial: trial.fingerprint not in known):
            if trial.cell not in chosen and self._is_whole(trial):
                chosen[trial.cell] = trial
        if {trial.fingerprint for trial in chosen.values()} <= known.keys():
            return
        # Here and not above: it needs torch, which a driver does not need until now.
        from focus_lab.lab.latency import measure

        folders = {t.fingerprint: trial_folder(experiment, t) for t in chosen.values()}
        measured = measure(folders)
        for trial in chosen.values():
            metrics = measured.get(trial.fingerprint)
            if metrics and trial.tracking_run_id:
                with contextlib.suppress(MissingRunError):
                    self.tracker.log_final(trial.tracking_run_id, metrics)
        # Last, so that nothing is called known before the tracker has it.
        (experiment.folder / LATENCY).write_text(json.dumps(measured, indent=1))

    def _is_whole(self, trial: Trial) -> bool:
        """Whether a trial that succeeded, and that the tracker has, was not stopped early."""
        with contextlib.suppress(MissingRunError):
            epochs = self.tracker.curves(trial.tracking_run_id or "", ("epoch",)).get("epoch", [])
            return bool(epochs) and epochs[-1][0] >= trial.spec["training"]["epochs"]
        return False


def _load_ahead() -> None:
    """Load what follows the last trial while it runs: usually a core has become free by then."""
    for module in ("focus_lab.lab.latency", "focus_lab.analysis.report"):
        importlib.import_module(module)


@contextlib.contextmanager
def open_lab(
    home: Path, store: str | None = None, tracking: str | None = None, *, create: bool = True
) -> Iterator[Lab]:
    """The lab of a folder: SQLite store and MLflow in it, unless others are named.

    Args:
        home: the folder.
        store: SQLAlchemy URL of the store.
        tracking: MLflow tracking URI.
        create: whether what is missing is made.

    Raises:
        NoStoreError: there is no store, and none is to be made.
    """
    from focus_lab.lab.mlflow_tracker import MlflowTracker

    home = (make_folder(home) if create else home).resolve()
    opened = Store(store or store_url(home), create=create)
    try:
        tracking = tracking or embedded_tracking_uri(home)
        tracker = MlflowTracker(tracking, artifact_root(tracking, home))
        yield Lab(opened, tracker, home)
    finally:
        opened.close()


def embedded_tracking_uri(home: Path) -> str:
    """MLflow's store inside a lab's folder."""
    return f"sqlite:///{home.resolve() / 'mlflow.db'}"


def artifact_root(tracking: str, home: Path) -> str | None:
    """Where files of new MLflow experiments go; None where a server, or a folder, decides.

    MLflow's own choice for a database is `mlruns` in whatever folder one happens to be.
    """
    if tracking.startswith("sqlite:///"):
        folder = Path(tracking.removeprefix("sqlite:///")).resolve().parent
    elif tracking.startswith(("postgresql", "mysql", "mssql")):
        folder = home.resolve()
    else:
        return None
    return (folder / "mlartifacts").as_uri()


def store_path(home: Path) -> Path:
    """The embedded store's file."""
    return home.resolve() / "lab.db"


def store_url(home: Path) -> str:
    """URL of the store inside a lab's folder."""
    return f"sqlite:///{store_path(home)}"
