"""What analysis works on: an experiment's design and the results of its trials, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CellRecord:
    """One point of the design."""

    name: str
    overrides: dict[str, Any]
    is_baseline: bool
    keep_ratio: float
    """Share of tokens that the first encoder layer may refine (rho)."""
    mean_keep_ratio: float
    """Mean over the layers: keep_ratio x mean(cascade), the number that the paper prints."""


@dataclass(frozen=True)
class TrialRecord:
    """One cell with one seed, and what became of it."""

    id: str
    cell: str
    seed: int
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED; only SUCCEEDED trials are compared."""
    message: str | None = None
    """Why it failed, or has no numbers, in a sentence."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Metric -> (epoch, value), by epoch; metrics of the whole trial stand at epoch 0."""
    samples: Path | None = None
    """Folder with samples.json and the sample images, when the trial has written them."""

    def final(self, metric: str) -> float | None:
        """Value at the last epoch: not the best, which the validation images would have chosen."""
        points = self.curves.get(metric)
        return points[-1][1] if points else None


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment as the report sees it."""

    name: str
    description: str
    objectives: dict[str, str]
    """Metric -> "max" or "min"; the first is plotted against the second."""
    cells: tuple[CellRecord, ...]
    trials: tuple[TrialRecord, ...]
    spec: dict[str, Any]
    """The experiment's spec as JSON data."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Machine, versions and data, as `label: text`, for the report's footer."""
    foreground_share: float | None = None
    """Mean share of feature tokens whose centre lies in a box, over the validation images."""

    def trials_of(self, cell: str) -> list[TrialRecord]:
        """Succeeded trials of a cell, by seed."""
        found = [t for t in self.trials if t.cell == cell and t.state == "SUCCEEDED"]
        return sorted(found, key=lambda trial: trial.seed)
