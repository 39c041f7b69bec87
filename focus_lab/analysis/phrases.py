"""Parts of sentences about cells: names, means with intervals, differences."""

from __future__ import annotations

from collections.abc import Sequence

from focus_lab.analysis import quantities as q
from focus_lab.analysis.statistics import Difference
from focus_lab.analysis.summary import CellSummary


def name(cell: CellSummary) -> str:
    """A cell's name as text."""
    return q.printable(cell.name)


def joined(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def names(cells: Sequence[CellSummary]) -> str:
    """Names of cells, as they stand in a sentence."""
    return joined([name(cell) for cell in cells])


def with_interval(cell: CellSummary, metric: str) -> str:
    """A cell's mean of a metric, and where the mean over all seeds may lie."""
    found = cell.estimate(metric)
    if found is None:
        return q.MISSING
    text = q.number(metric, found.mean)
    if found.low is None:
        return f"{text} (one seed)"
    bounds = f"{q.number(metric, found.low)} to {q.number(metric, found.high)}"
    return f"{text} (95 % interval {bounds}, {found.n} seeds)"


def difference(metric: str, found: Difference) -> str:
    """A difference with its interval."""
    none = "(one seed)" if found.n < 2 else f"({found.n} seeds)"
    bounds = q.interval(metric, found.low, found.high, sign=True) or none
    return f"{q.signed(metric, found.mean)} {bounds}"
