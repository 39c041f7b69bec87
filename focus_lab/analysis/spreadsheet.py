"""The numbers as CSV: a row a cell and metric, and a row a trial and metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from focus_lab.analysis.ablation import change
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.summary import Comparison

CELLS = "cells.csv"
TRIALS = "trials.csv"

_CELL_COLUMNS = (
    "cell", "change", "baseline", "keep_ratio", "mean_keep_ratio", "metric", "seeds", "mean",
    "ci95_low", "ci95_high", "difference", "difference_ci95_low", "difference_ci95_high",
    "difference_bootstrap95_low", "difference_bootstrap95_high", "p", "p_holm", "hedges_g",
    "decided", "on_front", "chance_of_front",
)  # fmt: skip
_TRIAL_COLUMNS = ("trial", "cell", "seed", "state", "metric", "epoch", "value")

_Field = str | float | int | bool | None


def cells_csv(comparison: Comparison) -> str:
    """Every metric of every cell in its own unit; empty where there is nothing."""
    rows: list[tuple[_Field, ...]] = []
    known = comparison.chances.front if comparison.chances else {}
    for cell in comparison.cells:
        baseline = comparison.baseline is not None and cell.name == comparison.baseline.name
        for metric in sorted(cell.values):
            found, difference = cell.estimate(metric), cell.difference(metric)
            assert found is not None  # it has values
            low, high = (difference.bootstrap if difference else None) or (None, None)
            rows.append(
                (
                    cell.name,
                    change(cell),
                    baseline,
                    cell.record.keep_ratio,
                    cell.record.mean_keep_ratio,
                    metric,
                    found.n,
                    found.mean,
                    found.low,
                    found.high,
                    difference.mean if difference else None,
                    difference.low if difference else None,
                    difference.high if difference else None,
                    low,
                    high,
                    difference.p_value if difference else None,
                    cell.adjusted.get(metric),
                    difference.effect_size if difference else None,
                    cell.decided(metric) if difference else None,
                    cell.on_front,
                    known.get(cell.name),
                )
            )
    return _text(_CELL_COLUMNS, rows)


def trials_csv(record: ExperimentRecord) -> str:
    """Every trial's metrics at its last epoch; a trial without any has a row all the same."""
    rows: list[tuple[_Field, ...]] = []
    for trial in record.trials:
        head = (trial.id, trial.cell, trial.seed, trial.state)
        points = {metric: curve[-1] for metric, curve in sorted(trial.curves.items()) if curve}
        rows += [(*head, metric, epoch, value) for metric, (epoch, value) in points.items()]
        if not points:
            rows.append((*head, None, None, None))
    return _text(_TRIAL_COLUMNS, rows)


def _text(columns: Iterable[str], rows: Iterable[Iterable[_Field]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    return buffer.getvalue()


def _field(value: _Field) -> str | float | int:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        # A spreadsheet would take a name that begins so for a formula.
        return f"'{value}"
    return value
