"""The plots of a report. Each returns SVG text, or None when there is nothing to draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from focus_lab.analysis import drawing, marks
from focus_lab.analysis import quantities as q
from focus_lab.analysis.drawing import COLOURS, INK, MUTED
from focus_lab.analysis.records import TrialRecord
from focus_lab.analysis.summary import Comparison

PARTS = ("backbone", "neck", "scorer", "encoder", "decoder", "heads")
# Bars have no markers: an order in which colours that touch differ for the colour-blind too.
PART_COLOURS = tuple(COLOURS[place] for place in (0, 1, 3, 4, 5, 2))


def pareto_plot(comparison: Comparison) -> str | None:
    """First objective against the second: cells as points, seeds as dots, the front as a line."""
    vertical, horizontal = comparison.axes
    placed = []
    busy: list[tuple[float, float]] = []
    for cell in comparison.measured:
        x, y = cell.estimate(horizontal), cell.estimate(vertical)
        if x is not None and y is not None:
            placed.append((cell, x, y))
    if not placed:
        return None
    figure = drawing.new_figure(5.6, 4.2)
    axes = figure.subplots()
    drawing.style(axes, x=q.label(horizontal), y=q.label(vertical))
    for number, (cell, x, y) in enumerate(placed):
        colour, marker = marks.colour(number), marks.marker(number)
        for seed in cell.seeds if cell.n > 1 else ():
            across, up = cell.values[horizontal].get(seed), cell.values[vertical].get(seed)
            if across is not None and up is not None:
                axes.plot(across, up, ".", color=colour, markersize=4, alpha=0.65, zorder=2)
                busy.append((across, up))
        across_bar, up_bar = marks.bars(horizontal, x), marks.bars(vertical, y)
        for share in np.linspace(0, 1, 13):
            if up_bar:
                low, high = y.mean - up_bar[0][0], y.mean + up_bar[1][0]
                busy.append((x.mean, low + share * (high - low)))
            if across_bar:
                low, high = x.mean - across_bar[0][0], x.mean + across_bar[1][0]
                busy.append((low + share * (high - low), y.mean))
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=across_bar,
            yerr=up_bar,
            fmt=marker,
            color=colour,
            markersize=7,
            markerfacecolor=colour if cell.on_front else "none",
            markeredgewidth=1.5,
            elinewidth=1,
            capsize=3,
            zorder=4,
        )
    if len(comparison.objectives) == 2:
        front = sorted((x.mean, y.mean) for cell, x, y in placed if cell.on_front)
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
        for (x0, y0), (x1, y1) in itertools.pairwise(front):
            busy += [(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in np.linspace(0, 1, 25)]
    axes.margins(0.12)
    marks.zero_floor(axes, vertical)
    known = comparison.chances.front if comparison.chances else {}
    names = [
        short + (f" ({q.percent(known[cell.name])})" if cell.name in known else "")
        for short, (cell, _, _) in zip(
            q.distinct([cell.name for cell, _, _ in placed], marks.NAME_WIDTH), placed, strict=True
        )
    ]
    drawing.place_labels(axes, [(x.mean, y.mean) for _, x, y in placed], names, busy)
    return drawing.to_svg(figure, "pareto")


def curves_plot(comparison: Comparison) -> str | None:
    """Loss and AP over the epochs: mean over seeds, band from the lowest to the highest seed."""
    figure = drawing.new_figure(5.6, 5.2)
    upper, lower = figure.subplots(2, 1, sharex=True)
    handles: list[Line2D] = []
    labels: list[str] = []
    for number, cell in enumerate(comparison.measured):
        trials = comparison.record.trials_of(cell.name)
        look = marks.line(number)
        drawn = [
            _curve(axes, trials, metric, look, marks.marker(number))
            for axes, metric in ((upper, "loss/total"), (lower, "coco/AP"))
        ]
        if any(drawn):
            handles.append(marks.handle(number, 4))
            labels.append(cell.name)
    if not handles:
        return None
    drawing.style(upper, x="", y="training loss")
    drawing.style(lower, x="epoch", y="COCO AP")
    lower.xaxis.get_major_locator().set_params(integer=True)
    marks.zero_floor(lower, "coco/AP")
    labels = q.distinct(labels, marks.NAME_WIDTH)
    drawing.legend(figure, handles, labels, drawing.legend_columns(labels))
    return drawing.to_svg(figure, "curves")


def cost_plot(comparison: Comparison) -> str | None:
    """GFLOPs of each cell as a bar split by part of the model."""
    cells = [cell for cell in comparison.measured if cell.mean("cost/gflops") is not None]
    shares = {part: [cell.mean(f"cost/{part}_gflops") or 0.0 for cell in cells] for part in PARTS}
    if not cells or not any(any(values) for values in shares.values()):
        return None
    figure = drawing.new_figure(5.6, 1.5 + 0.36 * len(cells))
    axes = figure.subplots()
    rows = list(range(len(cells)))
    left = np.zeros(len(cells))
    handles = [Patch(color=colour) for colour in PART_COLOURS]
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        axes.barh(rows, shares[part], left=left, height=0.62, color=colour, edgecolor="none")
        left += shares[part]
    for row, cell in zip(rows, cells, strict=True):
        relative = comparison.relative(cell, "cost/gflops")
        text = f"{left[row]:.3g}" + (f" ({relative:.2f}{q.TIMES})" if relative is not None else "")
        axes.annotate(
            text,
            (left[row], row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    drawing.style(axes, x="GFLOPs of one image (2 per MAC)", y="")
    names = q.distinct([cell.name for cell in cells], 24)
    axes.set_yticks(rows, names, parse_math=False)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlim(0, float(left.max()) * 1.22 or 1)
    drawing.legend(figure, handles, PARTS, 3)
    return drawing.to_svg(figure, "cost")


def _curve(
    axes: Axes, trials: Sequence[TrialRecord], metric: str, look: dict[str, Any], marker: str
) -> bool:
    """Mean and band of a metric over epochs; whether there was anything to draw."""
    by_epoch: dict[int, list[float]] = {}
    for trial in trials:
        for epoch, value in trial.curves.get(metric, []):
            if math.isfinite(value) and not q.is_no_box(metric, value):
                by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    if not epochs:
        return False
    means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
    few = len(epochs) <= 12
    axes.plot(
        epochs,
        means,
        marker=marker if few else None,
        markersize=4,
        linewidth=1.6,
        **look,
    )
    if max(len(values) for values in by_epoch.values()) > 1:
        low = [min(by_epoch[epoch]) for epoch in epochs]
        high = [max(by_epoch[epoch]) for epoch in epochs]
        axes.fill_between(epochs, low, high, color=look["color"], alpha=0.16, linewidth=0)
    return True
