"""Plots over the keep ratio: AP, and how much of the foreground survives, by level and box size."""

from __future__ import annotations

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


def keep_ratio_plot(comparison: Comparison) -> str | None:
    """AP, AP50 and foreground recall against the keep ratio of the first encoder layer.

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
    for number, (name, cells) in enumerate(lines.items()):
        colour = marks.colour(number)
        curves = ((upper, "coco/AP", "-"), (upper, "coco/AP50", "--"), (lower, _RECALL, "-"))
        for axes, metric, dash in curves:
            look = {"color": colour, "linestyle": dash}
            marks.estimates(axes, _points(cells, metric), metric, look, marks.marker(number))
        if len(lines) > 1:
            handles.append(Line2D([], [], color=colour, marker=marks.marker(number)))
            labels.append(q.printable(name, marks.NAME_WIDTH))
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
    drawing.style(lower, x="keep ratio of the first encoder layer", y="foreground recall")
    marks.zero_floor(upper, "coco/AP")
    lower.set_ylim(-0.03, 1.05)
    lower.set_xlim(left=0)
    drawing.legend(figure, handles, labels, drawing.legend_columns(labels))
    return drawing.to_svg(figure, "keep-ratio")


def recall_plot(comparison: Comparison) -> str | None:
    """Foreground recall of the first encoder layer against the keep ratio.

    By feature level above, by size of box below; of the longest line of cells that differ in
    nothing but the keep ratio.
    """
    groups = _keep_ratio_lines(comparison)
    if not groups:
        return None
    cells = max(groups.values(), key=len)
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


def _points(cells: list[CellSummary], metric: str) -> list[tuple[float, Estimate]]:
    """(keep ratio, estimate) of the cells that have the metric."""
    found = [(cell.record.keep_ratio, cell.estimate(metric)) for cell in cells]
    return [(ratio, value) for ratio, value in found if value is not None]


def _keep_ratio_lines(comparison: Comparison) -> dict[str, list[CellSummary]]:
    """Cells by what they have besides the keep ratio, by rising ratio; none if no line has two."""
    groups: dict[str, list[CellSummary]] = {}
    for cell in comparison.measured:
        rest = {k: v for k, v in cell.record.overrides.items() if k != KEEP_RATIO}
        key = ", ".join(f"{q.field(k)} {q.short(v)}" for k, v in sorted(rest.items()))
        groups.setdefault(key or "base", []).append(cell)
    if all(len({cell.record.keep_ratio for cell in cells}) < 2 for cells in groups.values()):
        return {}
    return {
        name: sorted(cells, key=lambda cell: cell.record.keep_ratio)
        for name, cells in groups.items()
    }
