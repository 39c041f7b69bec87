"""From trials to cells: values by seed, means, differences to the baseline, the Pareto front."""

from __future__ import annotations

import math
import statistics as plain
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from focus_lab.analysis import pareto
from focus_lab.analysis.chances import Chances, chances
from focus_lab.analysis.knee import knee
from focus_lab.analysis.placing import means_over_all_seeds
from focus_lab.analysis.power import ALPHA
from focus_lab.analysis.quantities import is_no_box
from focus_lab.analysis.records import CellRecord, ExperimentRecord, TrialRecord
from focus_lab.analysis.statistics import Difference, Estimate, estimate, holm, paired_difference

_DEFAULT_OBJECTIVES = {"coco/AP": "max", "cost/gflops": "min"}
THROUGHPUT = "train/images_per_second"


@dataclass(frozen=True)
class CellSummary:
    """One cell over its seeds; only trials that succeeded count."""

    record: CellRecord
    seeds: tuple[int, ...]
    """Seeds that succeeded."""
    values: dict[str, dict[int, float]]
    """Metric -> seed -> value at the last epoch (throughput: median over epochs). Without -1."""
    no_box: frozenset[str]
    """Metrics for which pycocotools found no box, in every seed."""
    differences: dict[str, Difference] | None = None
    """Metric -> difference to the baseline; None for the baseline itself, or without one."""
    adjusted: dict[str, float] = field(default_factory=dict)
    """Metric -> p-value of the difference after Holm's correction over all cells; without those
    that have one seed in common with the baseline."""
    on_front: bool = False
    """On the Pareto front of the cells' positions."""
    seeds_on_front: tuple[int, int] = (0, 0)
    """(seeds in which this cell is on that seed's own front, seeds that all placed cells have)."""

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.record.name

    @property
    def n(self) -> int:
        """Number of seeds that succeeded."""
        return len(self.seeds)

    def estimate(self, metric: str) -> Estimate | None:
        """Mean over seeds with its interval; None when nothing was measured."""
        values = self.values.get(metric)
        return estimate([values[seed] for seed in sorted(values)]) if values else None

    def mean(self, metric: str) -> float | None:
        """Mean over seeds; None when nothing was measured."""
        found = self.estimate(metric)
        return found.mean if found else None

    def difference(self, metric: str) -> Difference | None:
        """Difference to the baseline, when there is one."""
        return (self.differences or {}).get(metric)

    def decided(self, metric: str) -> bool:
        """Whether the difference to the baseline holds after Holm's correction.

        Never with one seed.
        """
        return self.adjusted.get(metric, 1.0) < ALPHA


@dataclass(frozen=True)
class Comparison:
    """All cells of an experiment, compared."""

    record: ExperimentRecord
    cells: tuple[CellSummary, ...]
    baseline: CellSummary | None
    """The cell that others are compared with, when at least one of its trials succeeded."""
    objectives: dict[str, str] = field(default_factory=lambda: dict(_DEFAULT_OBJECTIVES))
    positions: dict[str, dict[str, float]] = field(default_factory=dict)
    """Objective -> cell -> its mean as if every cell had every seed: by these cells are ranked."""
    chances: Chances | None = None
    """How sure front and knee are; None when no two seeds are common to two cells."""
    knee: str | None = None
    """Cell at the knee of the front; None without one, or with other than two objectives."""

    @cached_property
    def measured(self) -> tuple[CellSummary, ...]:
        """Cells with at least one trial that succeeded."""
        return tuple(cell for cell in self.cells if cell.n)

    @property
    def axes(self) -> tuple[str, str]:
        """Metrics of the Pareto plot: (vertical, horizontal)."""
        names = list(self.objectives)
        spare = next(name for name in ("cost/gflops", "coco/AP") if name != names[0])
        return names[0], names[1] if len(names) > 1 else spare

    def ranked(self, metric: str) -> list[CellSummary]:
        """Cells by an objective, the best first; without those that do not have it."""
        stands = self.positions[metric]
        sign = 1 if self.objectives[metric] == "max" else -1
        placed = [cell for cell in self.measured if cell.name in stands]
        return sorted(placed, key=lambda cell: -sign * stands[cell.name])

    @property
    def uneven(self) -> bool:
        """Whether cells lack seeds that others have, so that means alone would mislead."""
        return any(
            stands[cell.name] != cell.mean(metric)
            for metric, stands in self.positions.items()
            for cell in self.measured
            if cell.name in stands
        )

    def relative(self, cell: CellSummary, metric: str) -> float | None:
        """A cell's mean as a multiple of the baseline's; None when either is missing."""
        mine = cell.mean(metric)
        reference = self.baseline.mean(metric) if self.baseline else None
        return mine / reference if mine is not None and reference else None


def compare(record: ExperimentRecord) -> Comparison:
    """Summaries of all cells of an experiment, in the order of the design."""
    objectives = dict(record.objectives) or dict(_DEFAULT_OBJECTIVES)
    cells = [_summarise(cell, record.trials_of(cell.name)) for cell in record.cells]
    positions = {
        metric: means_over_all_seeds({cell.name: cell.values.get(metric, {}) for cell in cells})
        for metric in objectives
    }
    points = _points(cells, positions)
    on_front = pareto.front(points, list(objectives.values()))
    by_seed = _fronts_by_seed(cells, objectives)
    cells = [
        replace(
            cell,
            on_front=cell.name in on_front,
            seeds_on_front=(sum(cell.name in names for names in by_seed), len(by_seed)),
        )
        for cell in cells
    ]
    baseline = next((cell for cell in cells if cell.record.is_baseline and cell.n), None)
    if baseline is not None:
        cells = _with_differences(cells, baseline)
    return Comparison(
        record,
        tuple(cells),
        baseline,
        objectives,
        positions,
        chances({cell.name: cell.values for cell in cells if cell.name in points}, objectives),
        _knee(points, objectives),
    )


def _with_differences(cells: list[CellSummary], baseline: CellSummary) -> list[CellSummary]:
    """The cells with their differences to the baseline, and p-values adjusted over all of them."""
    differences: dict[str, dict[str, Difference]] = {}
    p_values: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.name == baseline.name:
            continue
        differences[cell.name] = {}
        for metric, values in cell.values.items():
            found = paired_difference(values, baseline.values.get(metric, {}))
            if found is None:
                continue
            if found.deviation == 0 and found.mean and metric.startswith("coco/"):
                # Counts repeat; what was learnt does not: its spread is not 0, but not known.
                found = Difference(found.n, found.mean)
            differences[cell.name][metric] = found
            if found.p_value is not None:
                p_values.setdefault(metric, {})[cell.name] = found.p_value
    adjusted = {metric: holm(found) for metric, found in p_values.items()}
    return [
        cell
        if cell.name == baseline.name
        else replace(
            cell,
            differences=differences[cell.name],
            adjusted={m: found[cell.name] for m, found in adjusted.items() if cell.name in found},
        )
        for cell in cells
    ]


def _summarise(cell: CellRecord, trials: list[TrialRecord]) -> CellSummary:
    values: dict[str, dict[int, float]] = {}
    no_box: set[str] = set()
    for trial in trials:
        for metric in trial.curves:
            value = _last(trial, metric)
            if value is None:
                continue
            if is_no_box(metric, value):
                no_box.add(metric)
            else:
                values.setdefault(metric, {})[trial.seed] = value
    seeds = tuple(dict.fromkeys(trial.seed for trial in trials))
    return CellSummary(cell, seeds, values, frozenset(no_box - values.keys()))


def _last(trial: TrialRecord, metric: str) -> float | None:
    value = trial.final(metric)
    if metric == THROUGHPUT and value is not None:
        value = plain.median(point for _, point in trial.curves[metric])
    return value if value is not None and math.isfinite(value) else None


def _points(
    cells: list[CellSummary], positions: dict[str, dict[str, float]]
) -> dict[str, list[float]]:
    """Where the cells stand that have every objective."""
    return {
        cell.name: [found[cell.name] for found in positions.values()]
        for cell in cells
        if all(cell.name in found for found in positions.values())
    }


def _knee(points: dict[str, list[float]], objectives: dict[str, str]) -> str | None:
    directions = tuple(objectives.values())
    if not points or len(directions) != 2:
        return None
    place = int(knee(np.array(list(points.values())), (directions[0], directions[1])))
    return list(points)[place] if place >= 0 else None


def _fronts_by_seed(cells: list[CellSummary], objectives: dict[str, str]) -> list[set[str]]:
    """The front of each seed that all measured cells have."""
    placed = [cell for cell in cells if all(cell.values.get(metric) for metric in objectives)]
    if not placed:
        return []
    common = set.intersection(*(set(cell.values[m]) for cell in placed for m in objectives))
    return [
        pareto.front(
            {cell.name: [cell.values[metric][seed] for metric in objectives] for cell in placed},
            list(objectives.values()),
        )
        for seed in sorted(common)
    ]
