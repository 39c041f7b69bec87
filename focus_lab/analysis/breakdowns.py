"""What lies behind a trial's AP, read tolerantly: a broken file costs a plot, not the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from focus_lab.analysis.records import ExperimentRecord

FILE = "breakdown.json"


@dataclass(frozen=True)
class Breakdown:
    """Precision by recall, and which class was taken for which."""

    precision: dict[str, NDArray[np.float64]]
    """IoU threshold -> mean over classes of the precision at 101 recalls from 0 to 1."""
    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    """[K + 1, K + 1], rows the truth, columns what was detected; the last of each is `none`."""
    iou: float
    """From which a detection and a box are paired."""
    score: float
    """From which a detection counts."""


def read_breakdown(folder: Path) -> Breakdown | None:
    """Breakdown of a trial; None when it is missing or cannot be understood."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        curves = {
            str(iou): np.asarray(values, dtype=np.float64)
            for iou, values in content["precision"].items()
        }
        if any(curve.shape != (101,) for curve in curves.values()):
            return None
        confusion = content["confusion"]
        names = tuple(str(name) for name in confusion["class_names"])
        counts = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
        for true, found, count in confusion["counts"]:
            counts[int(true), int(found)] = int(count)
        return Breakdown(curves, names, counts, float(confusion["iou"]), float(confusion["score"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def read_breakdowns(record: ExperimentRecord) -> dict[str, list[Breakdown]]:
    """Cell -> the breakdowns of its succeeded trials, by seed; without cells that have none."""
    found = {
        cell.name: [
            breakdown
            for trial in record.trials_of(cell.name)
            if trial.samples and (breakdown := read_breakdown(trial.samples))
        ]
        for cell in record.cells
    }
    return {name: breakdowns for name, breakdowns in found.items() if breakdowns}
