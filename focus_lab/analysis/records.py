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
    """Share of the tokens that may be refined (rho), of which the cascade gives layers a share."""
    mean_keep_ratio: float
    """Mean share that a layer refines: the number that the paper prints."""
    read_from: str | None = None
    """The cell that was trained, when this one is its weights at another keep ratio."""
    alone: str | None = None
    """The cell that was trained at this keep ratio alone and is otherwise the same, when this one
    was read from an elastic training."""


@dataclass(frozen=True)
class TrialRecord:
    """One cell with one seed, and what became of it."""

    id: str
    """Shared by the cells that were read from one training."""
    cell: str
    seed: int
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or CANCELLED; only SUCCEEDED trials are compared, and of
    these only those that were trained to their end."""
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

    @property
    def epochs(self) -> int:
        """Epochs that it came through; 0 when none is known."""
        return max((points[-1][0] for points in self.curves.values() if points), default=0)


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

    @property
    def trainings(self) -> tuple[TrialRecord, ...]:
        """Each trial once: one that was read at several keep ratios as read at the largest."""
        ratios = {cell.name: cell.keep_ratio for cell in self.cells}
        found: dict[str, TrialRecord] = {}
        for trial in self.trials:
            other = found.setdefault(trial.id, trial)
            if other is not trial and ratios[trial.cell] > ratios[other.cell]:
                found[trial.id] = trial
        return tuple(found.values())

    def trained(self, cell: str) -> str:
        """The cell that was trained for this one: itself, or the one that it was read from."""
        return next((c.read_from for c in self.cells if c.name == cell), None) or cell

    def trials_of(self, cell: str) -> list[TrialRecord]:
        """Trials of a cell that succeeded and were not stopped early, by seed."""
        found = [
            trial
            for trial in self.trials
            if trial.cell == cell
            and trial.state == "SUCCEEDED"
            and self.stopped_before(trial) is None
        ]
        return sorted(found, key=lambda trial: trial.seed)

    def stopped_before(self, trial: TrialRecord) -> int | None:
        """Epochs that a trial should have had, when it succeeded with fewer of them.

        Its numbers are those of a shorter training and are never compared with finished ones.
        """
        planned = self._planned_epochs(trial.cell)
        short = planned is not None and 0 < trial.epochs < planned
        return planned if short and trial.state == "SUCCEEDED" else None

    @property
    def exploratory(self) -> tuple[str, ...]:
        """Why the experiment can suggest but not confirm; empty when it is confirmatory."""
        sweep = self.spec.get("sweep") or {}
        search = _kind(sweep.get("search"), "grid")
        stopping = _kind(sweep.get("early_stopping"), "none")
        reasons = []
        if search != "grid":
            reasons.append(f"its cells were chosen by a search ({search}), not by a plan")
        if stopping != "none":
            reasons.append(f"weak trials were stopped early ({stopping})")
        return tuple(reasons)

    def _planned_epochs(self, cell: str) -> int | None:
        overrides = next((c.overrides for c in self.cells if c.name == cell), {})
        changed = overrides.get("training")
        for found in (
            overrides.get("training.epochs"),
            changed.get("epochs") if isinstance(changed, dict) else None,
            (self.spec.get("training") or {}).get("epochs"),
        ):
            if isinstance(found, int):
                return found
        return None


def _kind(variant: object, default: str) -> str:
    kind = variant.get("kind", default) if isinstance(variant, dict) else default
    return str(kind)
