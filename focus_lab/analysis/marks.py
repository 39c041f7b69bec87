"""How cells are marked in plots: by colour, marker and dash together, never by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from focus_lab.analysis.drawing import COLOURS, DASHES, MARKERS
from focus_lab.analysis.statistics import Estimate

NAME_WIDTH = 30
"""Characters of a cell's name in a legend."""
_SHARES = ("coco/", "tokens/foreground_recall")


def colour(number: int) -> str:
    """Colour of the cell, class or level of this number."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """Its marker."""
    return MARKERS[number % len(MARKERS)]


def line(number: int) -> dict[str, Any]:
    """Colour and dash of its line; colours begin again where dashes change."""
    return {
        "color": colour(number),
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def handle(number: int, size: float = 5) -> Line2D:
    """Its mark in a legend."""
    return Line2D([], [], marker=marker(number), markersize=size, **line(number))


def bars(metric: str, found: Estimate) -> list[list[float]] | None:
    """Lengths of an interval's halves for matplotlib; None when too short to be seen."""
    if found.low is None or found.high is None:
        return None
    low, high = found.low, found.high
    if metric.startswith(_SHARES):
        # The t interval knows no bounds, an AP does.
        low, high = max(0.0, low), min(1.0, high)
    if high - low < 1e-3 * abs(found.mean):
        return None
    return [[max(0.0, found.mean - low)], [max(0.0, high - found.mean)]]


def estimates(
    axes: Axes,
    points: Sequence[tuple[float, Estimate]],
    metric: str,
    look: dict[str, Any],
    shape: str,
) -> None:
    """A line through means over the horizontal axis, with interval bars."""
    for across, found in points:
        axes.errorbar(
            across, found.mean, yerr=bars(metric, found), color=look["color"], elinewidth=1,
            capsize=3,
        )  # fmt: skip
    axes.plot(
        [across for across, _ in points],
        [found.mean for _, found in points],
        marker=shape,
        markersize=5,
        linewidth=1.6,
        **look,
    )


def zero_floor(axes: Axes, metric: str) -> None:
    """No room below 0 for what cannot be negative."""
    low, high = axes.get_ylim()
    if metric.startswith("coco/") and low < 0:
        axes.set_ylim(-0.03 * high, high)
