"""From the lab's records to the client's models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from focus_lab.client import models
from focus_lab.lab.comparison import view_path
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.progress import PROGRESS
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Trial
from service.state import State

PAGE = "report.html"
"""The report's page in an experiment's folder `report`."""


def experiment(state: State, entry: Entry) -> models.Experiment:
    """An experiment, as its queue knows it."""
    return models.Experiment(**_fields(state, entry))


def listed(state: State, entries: Sequence[Entry]) -> list[models.ListedExperiment]:
    """Experiments of a list, and how far they are."""
    counts = state.queue.store.trial_counts([entry.id for entry in entries])
    return [
        models.ListedExperiment(
            **_fields(state, entry), trial_states=_by_name(counts.get(entry.id, {}))
        )
        for entry in entries
    ]


def detail(state: State, entry: Entry) -> models.ExperimentDetail:
    """An experiment with everything."""
    stored = state.queue.store.experiment(entry.id)
    counts = state.queue.store.trial_counts([entry.id])
    return models.ExperimentDetail(
        **_fields(state, entry),
        spec=shown_spec(state, stored),
        trial_states=_by_name(counts.get(entry.id, {})),
        cpus=entry.gang.total.cpus,
        gpus=entry.gang.total.gpus,
        comparison_url=comparison_url(state, stored),
        report_ready=(stored.folder / "report" / PAGE).is_file(),
    )


def shown_spec(state: State, stored: Experiment) -> dict[str, Any]:
    """An experiment's spec as a client would write it: what is registered stands there by name."""
    return state.queue.policy.registry.named(stored.spec)


def comparison_url(state: State, stored: Experiment) -> str | None:
    """The experiment's page in MLflow."""
    if state.settings.mlflow_url is None or stored.tracking_id is None:
        return None
    return f"{state.settings.mlflow_url.rstrip('/')}/{view_path(stored.tracking_id)}"


def trial(stored: Experiment, found: Trial) -> models.Trial:
    """A trial, with where it is when it runs."""
    progress = None
    if found.state is TrialState.RUNNING:
        try:
            content = json.loads((trial_folder(stored, found) / PROGRESS).read_text())
            progress = models.TrialProgress.model_validate(content)
        except (OSError, ValueError):
            # Not written yet, or on another machine's disk.
            progress = None
    return models.Trial(
        id=found.id,
        name=found.name,
        cell=found.cell,
        seed=found.seed,
        overrides=found.overrides,
        state=found.state.value,
        attempts=found.attempts,
        epochs=int(found.spec["training"]["epochs"]),
        progress=progress,
        failure=found.failure,
        message=found.message,
        started_at=found.started_at,
        ended_at=found.ended_at,
        mlflow_run_id=found.tracking_run_id,
    )


def _by_name(counts: Mapping[TrialState, int]) -> dict[str, int]:
    return {state.value: count for state, count in counts.items()}


def _fields(state: State, entry: Entry) -> dict[str, Any]:
    wait = None
    if entry.state is QueueState.QUEUED:
        place = state.board.place(entry)
        wait = (
            models.Wait(position=place.position, reason=place.reason.value, text=place.text)
            if place
            else models.Wait(position=0, reason="new", text="the queue is being looked through")
        )
    return {
        "id": entry.id,
        "name": entry.name,
        "description": entry.description,
        "user": entry.user,
        "project": entry.project,
        "state": entry.state.value,
        "priority": entry.priority,
        "version": entry.version,
        "attempt": entry.attempt,
        "trials": entry.trials,
        "submitted_at": entry.submitted_at,
        "queued_at": entry.queued_at,
        "started_at": entry.started_at,
        "ended_at": entry.ended_at,
        "message": entry.message,
        "wait": wait,
    }
