"""Plots over the keep ratio: AP, and how much of the foreground survives, by level and box size."""

from __future__ import annotations

import json
from typing import TypeAlias

from matplotlib.lines import Line2D

from focus_lab.analysis import drawing, marks
from focus_lab.analysis import quantities as q
from focus_lab.analysis.drawing import DASHES, INK, MUTED
from focus_lab.analysis.statistics import Estimate
from focus_lab.analysis.summary import CellSummary, Comparison
from focus_lab.specs.plan import KEEP_RATIO

_RECALL = "tokens/foreground_recall"
_SIZES = ("small", "medium", "large")
_MAX_LEVELS = 7
_Line: TypeAlias = tuple[str, list[CellSummary]]
"""Name and cells."""


def keep_ratio_plot(comparison: Comparison) -> str | None:
    """AP, AP50 and foreground recall against the keep ratio.

    Cells that differ in nothing but the keep ratio share a line.
    """
    lines = _keep_ratio_lines(comparison)
    if not lines:
        return None
    figure = drawing.new_figure(5.6, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    share = comparison.record.foreground_share
    handles: list[Line2D] = []
    labels: list[str] = []
    names = q.distinct([name for name, _ in lines], marks.NAME_WIDTH)
    for number, (name, (_, cells)) in enumerate(zip(names, lines, strict=True)):
        colour = marks.colour(number)
        curves = ((upper, "coco/AP", "-"), (upper, "coco/AP50", "--"), (lower, _RECALL, "-"))
        for axes, metric, dash in curves:
            look = {"color": colour, "linestyle": dash}
            marks.estimates(axes, _points(cells, metric), metric, look, marks.marker(number))
        if len(lines) > 1:
            handles.append(Line2D([], [], color=colour, marker=marks.marker(number)))
            labels.append(name)
    key_colour = marks.colour(0) if len(lines) == 1 else MUTED
    handles.append(Line2D([], [], color=key_colour))
    handles.append(Line2D([], [], color=key_colour, linestyle="--"))
    labels += ["AP", "AP50"]
    if share is not None:
        for axes in (upper, lower):
            axes.axvline(share, color=MUTED, linewidth=1.2, linestyle=":")
        handles.append(Line2D([], [], color=MUTED, linestyle=":", linewidth=1.2))
        labels.append(f"foreground share {q.percent(share)}")
    drawing.style(upper, x="", y="COCO AP")
    drawing.style(lower, x="keep ratio", y="foreground recall")
    marks.zero_floor(upper, "coco/AP")
    lower.set_ylim(-0.03, 1.05)
    lower.set_xlim(left=0)
    drawing.legend(figure, handles, labels, drawing.legend_columns(labels))
    return drawing.to_svg(figure, "keep-ratio")


def recall_plot(comparison: Comparison) -> str | None:
    """Foreground recall against the keep ratio.

    By feature level above, by size of box below; of the longest line of cells that differ in
    nothing but the keep ratio.
    """
    lines = _keep_ratio_lines(comparison)
    if not lines:
        return None
    _, cells = _longest(lines)
    by_level = [(f"level {level}", f"{_RECALL}_level_{level}") for level in range(_MAX_LEVELS)]
    by_size = [(f"{size} boxes", f"{_RECALL}_{size}") for size in _SIZES]
    panels = [
        [(name, points) for name, metric in panel if (points := _points(cells, metric))]
        for panel in (by_level, by_size)
    ]
    if not any(panels):
        return None
    figure = drawing.new_figure(5.6, 5.6)
    axes = figure.subplots(2, 1, sharex=True)
    for one, curves, x in zip(axes, panels, ("", "keep ratio"), strict=True):
        for number, (name, points) in enumerate(curves):
            # Seven levels at most: a dash of its own for each of the first four.
            look = {"color": marks.colour(number), "linestyle": DASHES[number % len(DASHES)]}
            marks.estimates(one, points, _RECALL, look, marks.marker(number))
            one.plot([], [], marker=marks.marker(number), markersize=5, label=name, **look)
        drawing.style(one, x=x, y="foreground recall")
        one.set_ylim(-0.03, 1.05)
        one.set_xlim(left=0)
        if curves:
            one.legend(
                frameon=False, fontsize=9, loc="lower right", handlelength=2.8, labelcolor=INK
            )  # fmt: skip
    return drawing.to_svg(figure, "recall")


def recall_line(comparison: Comparison) -> str | None:
    """Name of the line that `recall_plot` draws; None when there is no other."""
    lines = _keep_ratio_lines(comparison)
    return _longest(lines)[0] if len(lines) > 1 else None


def _points(cells: list[CellSummary], metric: str) -> list[tuple[float, Estimate]]:
    """(keep ratio, estimate) of the cells that have the metric."""
    found = [(cell.record.keep_ratio, cell.estimate(metric)) for cell in cells]
    return [(ratio, value) for ratio, value in found if value is not None]


def _keep_ratio_lines(comparison: Comparison) -> list[_Line]:
    """Cells by what they have besides the keep ratio, by rising ratio; none if no line has two."""
    groups: dict[str, _Line] = {}
    for cell in comparison.measured:
        rest = {k: v for k, v in cell.record.overrides.items() if k != KEEP_RATIO}
        name = ", ".join(f"{q.field(k)} {q.short(v)}" for k, v in sorted(rest.items()))
        # By the overrides themselves: names are for readers, and may be alike.
        key = json.dumps(rest, sort_keys=True)
        groups.setdefault(key, (name or "base", []))[1].append(cell)
    lines = list(groups.values())
    if all(len({cell.record.keep_ratio for cell in cells}) < 2 for _, cells in lines):
        return []
    return [(name, sorted(cells, key=lambda cell: cell.record.keep_ratio)) for name, cells in lines]


def _longest(lines: list[_Line]) -> _Line:
    return max(lines, key=lambda line: len(line[1]))
