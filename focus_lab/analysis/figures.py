"""The plots of a report with their titles and captions, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from focus_lab.analysis import class_plots, keep_ratio_plots, plots
from focus_lab.analysis import quantities as q
from focus_lab.analysis.breakdowns import Breakdown
from focus_lab.analysis.excerpt import excerpt
from focus_lab.analysis.summary import Comparison


@dataclass(frozen=True)
class Plot:
    """One plot of the report."""

    name: str
    """Name of its file, without `.svg`."""
    title: str
    caption: str
    svg: str


def draw_plots(comparison: Comparison, breakdowns: Mapping[str, Sequence[Breakdown]]) -> list[Plot]:
    """Every plot for which there are numbers.

    Args:
        comparison: the cells.
        breakdowns: cell -> what lies behind the AP of its trials.
    """
    vertical, horizontal = (q.label(metric) for metric in comparison.axes)
    several = any(cell.n > 1 for cell in comparison.cells)
    bars = " Bars are 95 % intervals over seeds." if several else " One seed: no intervals."
    band = "; the band runs from the lowest to the highest seed." if several else " (one seed)."
    sentence = excerpt(comparison).sentence
    few = f" {sentence}" if sentence else ""
    wanted = (
        (
            "pareto",
            f"{vertical} against {horizontal}",
            _pareto_caption(comparison, several) + bars,
            plots.pareto_plot(comparison),
        ),
        (
            "keep_ratio",
            "AP, AP50 and foreground recall against the keep ratio",
            "Foreground recall is the share of the tokens labelled foreground by "
            "model.foreground_targets, whatever the scorer learns, that any encoder layer refines. "
            + _share(comparison)
            + bars,
            keep_ratio_plots.keep_ratio_plot(comparison),
        ),
        (
            "recall",
            "Foreground recall by feature level and by size of box",
            "Level 0 is the finest; sizes of boxes are COCO's (below 32², below 96², above, in "
            "pixels of the original image)." + _line(comparison) + bars,
            keep_ratio_plots.recall_plot(comparison),
        ),
        (
            "curves",
            "Training loss and AP over the epochs",
            "Means over the seeds that succeeded" + band,
            plots.curves_plot(comparison),
        ),
        (
            "classes",
            "AP by class",
            f"At most {class_plots.MAX_CLASSES} classes, those on which the cells differ most; all "
            f"are in cells.csv.{few}" + bars,
            class_plots.class_plot(comparison),
        ),
        (
            "precision",
            "Precision by recall",
            "Mean over the classes that have boxes, of pycocotools' interpolated precision at 101 "
            "recalls; the last epoch, means over seeds" + band + few,
            class_plots.precision_plot(comparison, breakdowns),
        ),
        (
            "cost",
            "GFLOPs by part of the model",
            "Mean over the shapes of the validation images, parts from left to right as in the "
            "legend"
            + ("; in brackets the multiple of the baseline." if comparison.baseline else "."),
            plots.cost_plot(comparison),
        ),
    )
    return [Plot(name, title, text, svg) for name, title, text, svg in wanted if svg is not None]


def _pareto_caption(comparison: Comparison, several: bool) -> str:
    front = (
        "the dashed line is the Pareto front"
        if len(comparison.objectives) == 2
        else "the front is over all objectives, so no line is drawn"
    )
    text = f"A point is a cell, filled when on the front; {front}."
    if several:
        text += " Small dots are seeds."
    if comparison.chances is not None:
        text += " In brackets: the chance of being on the front."
    if comparison.chances is not None and comparison.chances.once:
        labels = " and ".join(q.label(metric) for metric in comparison.chances.once)
        text += f" {labels} was measured once a cell and is taken as certain."
    return text


def _share(comparison: Comparison) -> str:
    share = comparison.record.foreground_share
    if share is None:
        return "The mean foreground share was not measured."
    return f"On average {q.percent(share)} of the tokens lie in boxes (dotted line)."


def _line(comparison: Comparison) -> str:
    name = keep_ratio_plots.recall_line(comparison)
    return f" Drawn are the cells of the line “{q.printable(name)}” alone." if name else ""
