"""The tracker keeps numbers and files of trials. A protocol, and the implementation in memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from focus_lab.errors import TrackerError
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Experiment, Trial

Metrics = Mapping[str, float]
Curves = dict[str, list[tuple[int, float]]]
"""Metric name -> (epoch, value), by epoch."""


class MissingRunError(TrackerError):
    """The tracker does not have the run; name the one that has it with --tracking-uri."""


class Tracker(Protocol):
    """What the lab needs of an experiment tracker. Every call may be repeated without harm.

    Whatever takes a run's id raises MissingRunError when there is no such run: it was purged, or
    is elsewhere.
    """

    def ensure_experiment(self, experiment: Experiment) -> str:
        """Id of the tracker's experiment; made when missing."""

    def ensure_run(self, tracking_id: str, trial: Trial) -> str:
        """Id of the one run of a trial; made when missing."""

    def start_run(self, run_id: str) -> None:
        """The run is running (again)."""

    def log_epoch(self, run_id: str, epoch: int, metrics: Metrics) -> None:
        """Metrics of an epoch; epochs that the run already has are passed over."""

    def log_final(self, run_id: str, metrics: Metrics) -> None:
        """Metrics of the whole trial, not of an epoch."""

    def log_manifest(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        """Versions, code state and data digests of a trial."""

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """All files of `folder`, under `name`."""

    def end_run(self, run_id: str, state: TrialState) -> None:
        """The run has ended."""

    def curves(self, run_id: str, names: Collection[str] | None = None) -> Curves:
        """Metrics of a run over its epochs; all of them, or those of the names that it has."""

    def log_report(
        self, tracking_id: str, folder: Path, metrics: Metrics, exploratory: Sequence[str] = ()
    ) -> str:
        """The experiment's report and summary numbers on one summary run; returns its id.

        `exploratory`: why the experiment confirms nothing; empty when it may.
        """

    def has_view(self, tracking_id: str) -> bool:
        """Whether the experiment has a comparison page of its own."""

    def register_model(
        self, run_id: str, checkpoint: Path, name: str, alias: str, tags: Mapping[str, str]
    ) -> str:
        """A new version of a registered model, from a run's weights; `alias` then points to it."""


@dataclass
class MemoryRun:
    """A run of the tracker in memory."""

    trial_id: str
    state: TrialState = TrialState.PENDING
    curves: Curves = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)


class MemoryTracker:
    """Keeps everything in this process; for tests and benchmarks."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.reports: dict[str, Metrics] = {}
        self.exploratory: dict[str, tuple[str, ...]] = {}
        self.models: dict[str, list[tuple[str, dict[str, str]]]] = {}
        """Name -> run and tags of each version."""
        self.aliases: dict[tuple[str, str], str] = {}
        """Name and alias -> version."""

    def ensure_experiment(self, experiment: Experiment) -> str:
        """The experiment's own id."""
        return experiment.id

    def ensure_run(self, tracking_id: str, trial: Trial) -> str:
        """The trial's own id."""
        self.runs.setdefault(trial.id, MemoryRun(trial.id))
        return trial.id

    def start_run(self, run_id: str) -> None:
        """Mark it."""
        self._run(run_id).state = TrialState.RUNNING

    def log_epoch(self, run_id: str, epoch: int, metrics: Metrics) -> None:
        """Keep the epoch once."""
        curves = self._run(run_id).curves
        if any(past == epoch for past, _ in curves.get("epoch", [])):
            return
        for name, value in {**metrics, "epoch": float(epoch)}.items():
            if math.isfinite(value):
                curves[name] = sorted([*curves.get(name, []), (epoch, value)])

    def log_final(self, run_id: str, metrics: Metrics) -> None:
        """Keep them as of epoch 0."""
        for name, value in metrics.items():
            self._run(run_id).curves[name] = [(0, value)]

    def log_manifest(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        """Keep it."""
        self._run(run_id).manifest = dict(manifest)

    def log_files(self, run_id: str, folder: Path, name: str) -> None:
        """Keep the names."""
        self._run(run_id).files |= {
            f"{name}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()
        }

    def end_run(self, run_id: str, state: TrialState) -> None:
        """Mark it."""
        self._run(run_id).state = state

    def curves(self, run_id: str, names: Collection[str] | None = None) -> Curves:
        """What was kept."""
        found = self._run(run_id).curves
        return {name: found[name] for name in found if names is None or name in names}

    def has_view(self, tracking_id: str) -> bool:
        """Never: it has no pages."""
        return False

    def register_model(
        self, run_id: str, checkpoint: Path, name: str, alias: str, tags: Mapping[str, str]
    ) -> str:
        """Keep whose it is."""
        self._run(run_id)
        versions = self.models.setdefault(name, [])
        versions.append((run_id, dict(tags)))
        self.aliases[name, alias] = str(len(versions))
        return self.aliases[name, alias]

    def _run(self, run_id: str) -> MemoryRun:
        if run_id not in self.runs:
            raise MissingRunError(f"run: there is none, got {run_id!r}; the trial is in no tracker")
        return self.runs[run_id]

    def log_report(
        self, tracking_id: str, folder: Path, metrics: Metrics, exploratory: Sequence[str] = ()
    ) -> str:
        """Keep the numbers and what must be known with them."""
        self.reports[tracking_id] = metrics
        self.exploratory[tracking_id] = tuple(exploratory)
        return f"{tracking_id}-summary"
