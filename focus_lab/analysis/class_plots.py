"""Plots by class and by confidence: AP of each class, precision by recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from focus_lab.analysis import drawing, marks
from focus_lab.analysis import quantities as q
from focus_lab.analysis.breakdowns import Breakdown
from focus_lab.analysis.drawing import INK
from focus_lab.analysis.excerpt import excerpt
from focus_lab.analysis.summary import Comparison

MAX_CLASSES = 20
_CLASS_AP = "coco/AP_class/"
_IOUS = ("0.50", "0.75")


def class_plot(comparison: Comparison) -> str | None:
    """AP of each class, a mark a cell: of many classes those on which the cells differ most."""
    cells = excerpt(comparison).shown
    names = {m for cell in cells for m in cell.values if m.startswith(_CLASS_AP)}
    if not names:
        return None
    aps = {
        name: [ap for cell in cells if (ap := cell.mean(name)) is not None]
        for name in sorted(names)
    }
    widest = sorted(aps, key=lambda name: (min(aps[name]) - max(aps[name]), name))[:MAX_CLASSES]
    ordered = sorted(widest, key=lambda name: (-float(np.mean(aps[name])), name))
    legend = q.distinct([cell.name for cell in cells], marks.NAME_WIDTH)
    columns = drawing.legend_columns(legend)
    height = 1.1 + 0.3 * max(3, len(ordered)) + 0.22 * math.ceil(len(legend) / columns)
    figure = drawing.new_figure(5.6, height)
    axes = figure.subplots()
    for number, cell in enumerate(cells):
        # Side by side within the row of a class.
        offset = 0.5 * (number - (len(cells) - 1) / 2) / max(1, len(cells))
        for row, name in enumerate(ordered):
            found = cell.estimate(name)
            if found is None:
                continue
            axes.errorbar(
                found.mean, row + offset, xerr=marks.bars(name, found), fmt=marks.marker(number),
                color=marks.colour(number), markersize=5, elinewidth=0.8, capsize=0,
            )  # fmt: skip
    drawing.style(axes, x="AP of the class", y="")
    rows = list(range(len(ordered)))
    labels = [q.printable(name.removeprefix(_CLASS_AP), 20) for name in ordered]
    axes.set_yticks(rows, labels, parse_math=False, color=INK)
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]) if axes.get_xlim()[0] < 0.05 else None)
    handles = [marks.handle(number) for number in range(len(cells))]
    for one in handles:
        one.set_linestyle("")
    drawing.legend(figure, handles, legend, columns)
    return drawing.to_svg(figure, "classes")


def precision_plot(
    comparison: Comparison, breakdowns: Mapping[str, Sequence[Breakdown]]
) -> str | None:
    """Precision by recall at two IoU thresholds: mean over seeds, band from lowest to highest.

    Of many cells those of `excerpt`, in the same colours as in `class_plot`.
    """
    cells = excerpt(comparison).shown
    shown = {
        number: breakdowns[cell.name]
        for number, cell in enumerate(cells)
        if cell.name in breakdowns
    }
    ious = [iou for iou in _IOUS if any(iou in one.precision for f in shown.values() for one in f)]
    if not ious:
        return None
    figure = drawing.new_figure(5.6, 0.9 + 2.3 * len(ious))
    panels = figure.subplots(len(ious), 1, sharex=True, squeeze=False)[:, 0]
    recalls = np.linspace(0, 1, 101)
    for axes, iou in zip(panels, ious, strict=True):
        for number, found in shown.items():
            curves = np.array([one.precision[iou] for one in found if iou in one.precision])
            if not len(curves):
                continue
            axes.plot(
                recalls, curves.mean(axis=0), marker=marks.marker(number), markersize=4.5,
                # Not all at the same recall, where they would cover each other.
                markevery=(3 * number, 20), linewidth=1.6, **marks.line(number),
            )  # fmt: skip
            if len(curves) > 1:
                axes.fill_between(
                    recalls, curves.min(axis=0), curves.max(axis=0), color=marks.colour(number),
                    alpha=0.16, linewidth=0,
                )  # fmt: skip
        last = iou == ious[-1]
        drawing.style(axes, x="recall" if last else "", y=f"precision at IoU {iou}")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.05)
    labels = q.distinct([cells[number].name for number in shown], marks.NAME_WIDTH)
    handles = [marks.handle(number) for number in shown]
    drawing.legend(figure, handles, labels, drawing.legend_columns(labels))
    return drawing.to_svg(figure, "precision")
