"""What a job runs: the driver of one attempt. `python -m focus_lab.lab.queue.job ID ATTEMPT`.

Everything else it reads from the environment of its machine: FOCUS_LAB_STORE, FOCUS_LAB_HOME,
MLFLOW_TRACKING_URI, and what PostgreSQL and the storage need.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import structlog
from rich.console import Console

from focus_lab.errors import (
    ClusterUnreachableError,
    FocusLabError,
    StorageUnreachableError,
    StoreError,
    StoreUnreachableError,
    TrackerUnreachableError,
)
from focus_lab.lab.executor import Executor
from focus_lab.lab.lab import Lab, store_url
from focus_lab.lab.launch import launch
from focus_lab.lab.lease import Lease
from focus_lab.lab.log_lines import LogLines, configure_logs
from focus_lab.lab.patience import Patience
from focus_lab.lab.progress import PlainProgress, TrialProgress
from focus_lab.lab.queue.attempts import Attempt, Attempts, SupersededError
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, LeaseHeldError, Store
from focus_lab.lab.tune_executor import TuneExecutor
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.explain import validate_as
from focus_lab.specs.plan import Plan, plan

SUPERSEDED, HELD = 3, 4
"""Exit codes: the attempt is not wanted; another process carries the experiment out."""


@dataclass
class ToldProgress(PlainProgress):
    """Lines in the job's log, and events for whoever follows the experiment."""

    tell: Callable[[str, dict[str, Any]], None] = lambda kind, data: None

    def changed(self, trial: TrialProgress, event: str) -> None:
        """Print it, and write an event."""
        super().changed(trial, event)
        content: dict[str, Any] = {
            "trial": trial.name,
            "state": trial.state,
            "epoch": trial.epoch,
            "epochs": trial.epochs,
            "loss": trial.loss,
            "ap": trial.ap,
            "message": trial.message,
        }
        self._told("trial", content)

    def note(self, text: str) -> None:
        """Print it, and write an event."""
        super().note(text)
        self._told("note", {"text": text})

    def _told(self, kind: str, content: dict[str, Any]) -> None:
        # An event that cannot be written is no reason to stop a training.
        with contextlib.suppress(StoreError):
            self.tell(kind, content)


def run(
    experiment_id: str,
    number: int,
    home: Path,
    store: str | None,
    tracking: str | None,
    make_executor: Callable[[ExperimentSpec, Attempt], Executor],
    console: Console,
) -> int:
    """Carry out an attempt; returns the exit code of the process.

    Args:
        experiment_id: the experiment.
        number: its attempt.
        home: the lab's folder.
        store: URL of the store; None for SQLite in `home`.
        tracking: MLflow tracking URI; None for a store in `home`.
        make_executor: makes what carries out the trials.
        console: where lines go.
    """
    patience = Patience(note=lambda text: console.print(text, soft_wrap=True))
    opened = patience(lambda: Store(store or store_url(home), create=False))
    attempts = Attempts(opened.database, Policy())
    try:
        stored = patience(lambda: opened.experiment(experiment_id))
        # From before the beginning to after the last word: whoever finds no lease knows that there
        # is no driver.
        lease = Lease(opened, stored.id)
        with contextlib.ExitStack() as stack:
            patience(lambda: stack.enter_context(lease))
            attempt = patience(lambda: attempts.begin(stored.id, number))
            try:
                outcome, message = _carry_out(
                    stored, attempt, attempts, home, store, tracking, make_executor, console
                )
            except KeyboardInterrupt:
                # Told by its machine or the dispatcher. If this cannot be said it counts as lost.
                with contextlib.suppress(StoreError):
                    attempts.report(stored.id, number, "interrupted", None)
                raise
            patience(lambda: attempts.report(stored.id, number, outcome, message))
    except SupersededError as error:
        console.print(str(error), soft_wrap=True)
        return SUPERSEDED
    except LeaseHeldError as error:
        # Not a failure: whoever holds it goes on, or its lease runs out and this is tried again.
        console.print(str(error), soft_wrap=True)
        return HELD
    finally:
        opened.close()
    return 0 if outcome == "succeeded" else 1


def _carry_out(
    stored: Experiment,
    attempt: Attempt,
    attempts: Attempts,
    home: Path,
    store: str | None,
    tracking: str | None,
    make_executor: Callable[[ExperimentSpec, Attempt], Executor],
    console: Console,
) -> tuple[str, str | None]:
    """Outcome, and why it failed."""
    try:
        spec = validate_as(ExperimentSpec, stored.spec, lambda path: None)
        planned = plan(spec)
        executor = make_executor(spec, attempt)
        with launch(spec, planned, home, store, tracking, executor=executor) as lab:
            progress = ToldProgress(console, concurrent=attempt.trials)
            progress.tell = lambda kind, data: attempts.tell(stored.id, kind, data)
            # Whoever retries it has read why it was refused.
            if spec.compute.budget_hours is not None and attempt.entry.attempt == 1:
                refused = executor.call(_over_budget, spec, planned)
                if refused:
                    return "failed", refused
            lab.sweep(spec, planned, executor, progress, leased=True)
            return _outcome(lab, stored.id)
    except (
        ClusterUnreachableError,
        LeaseHeldError,
        StoreUnreachableError,
        TrackerUnreachableError,
        StorageUnreachableError,
    ):
        # Says nothing of the experiment: without a word from here it is tried again.
        raise
    except FocusLabError as error:
        console.print(str(error), soft_wrap=True, markup=False)
        return "failed", str(error)


def _over_budget(spec: ExperimentSpec, planned: Plan) -> str | None:
    # Here and not above: it imports torch, which this process does without.
    from focus_lab.training.estimate import over_budget

    return over_budget(spec, planned, "retry it as it is")


def _outcome(lab: Lab, experiment_id: str) -> tuple[str, str | None]:
    trials = lab.store.trials(experiment_id)
    failed = [trial for trial in trials if trial.state is not TrialState.SUCCEEDED]
    if not failed:
        return "succeeded", None
    first = failed[0]
    return "failed", (
        f"{len(failed)} of {len(trials)} trials have no result; the first is {first.name}: "
        f"{first.message or 'it was not carried out'}"
    )


def _on_ray(spec: ExperimentSpec, attempt: Attempt) -> Executor:
    return TuneExecutor(spec.compute, "auto", side_by_side=attempt.trials)


def main() -> None:
    """Entry point."""
    # Whoever started the cluster in the background of a shell has left it deaf to this one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)
    experiment_id, number = sys.argv[1], int(sys.argv[2])
    configure_logs()
    log = structlog.get_logger("focus_lab.driver").bind(experiment=experiment_id, attempt=number)
    # Every line says whose it is; the service shows people what was said.
    lines = cast("TextIO", LogLines(log, "driver"))
    console = Console(file=lines, width=200, highlight=False, markup=False)
    try:
        code = run(
            experiment_id,
            number,
            Path(os.environ.get("FOCUS_LAB_HOME", "runs")),
            os.environ.get("FOCUS_LAB_STORE"),
            os.environ.get("MLFLOW_TRACKING_URI"),
            _on_ray,
            console,
        )
    except KeyboardInterrupt:
        console.print("stopped; what is done is kept")
        code = 130
    except FocusLabError as error:
        console.print(f"{error}; it is tried again", soft_wrap=True)
        code = 1
    except Exception as error:
        log.exception("driver", exc_info=error)
        code = 1
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    # Once: a second one would cut short what the first has begun.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Tune has a handler of its own for it, by which trials end in order.
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
