"""Which cells a figure shows that has no room for all, and which it leaves out."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from focus_lab.analysis import quantities as q
from focus_lab.analysis.phrases import joined
from focus_lab.analysis.summary import CellSummary, Comparison

MAX_CELLS = 7
"""As many as there are colours: more could not be told apart."""
_MAX_NAMES = 12


@dataclass(frozen=True)
class Excerpt:
    """The cells of a figure."""

    shown: tuple[CellSummary, ...]
    """At most `MAX_CELLS`, in the order of the design."""
    left_out: tuple[CellSummary, ...] = ()
    """Those without room, likewise."""
    sentence: str = ""
    """What is shown and what is left out, for the figure's caption; empty when all are shown."""


def excerpt(comparison: Comparison, among: Container[str] | None = None) -> Excerpt:
    """The baseline and the cells that are best in the first objective; all when there is room.

    Args:
        comparison: the cells.
        among: names of the cells that the figure could show; None for all that have results.
    """
    cells = [cell for cell in comparison.measured if among is None or cell.name in among]
    if len(cells) <= MAX_CELLS:
        return Excerpt(tuple(cells))
    metric, _ = comparison.axes
    baseline = next((cell for cell in cells if cell is comparison.baseline), None)
    highest = comparison.objectives.get(metric) != "min"

    def rank(cell: CellSummary) -> tuple[bool, bool, float]:
        mean = cell.mean(metric)
        return cell is not baseline, mean is None, (-1 if highest else 1) * (mean or 0.0)

    chosen = {cell.name for cell in sorted(cells, key=rank)[:MAX_CELLS]}
    shown = tuple(cell for cell in cells if cell.name in chosen)
    left_out = tuple(cell for cell in cells if cell.name not in chosen)
    best = f"{'highest' if highest else 'lowest'} {q.label(metric)}"
    which = (
        f"the {MAX_CELLS} with the {best}"
        if baseline is None
        else f"the baseline and the {MAX_CELLS - 1} others with the {best}"
    )
    names = [q.printable(cell.name) for cell in left_out]
    if len(names) > _MAX_NAMES:
        names = [*names[: _MAX_NAMES - 1], f"{len(names) - _MAX_NAMES + 1} more"]
    sentence = f"Of {len(cells)} cells these are {which}; there is no room for {joined(names)}."
    return Excerpt(shown, left_out, sentence)
