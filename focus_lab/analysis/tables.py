"""Tables of an experiment: for the page, for Markdown, for the terminal, for machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from focus_lab.analysis import quantities as q
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.statistics import Estimate
from focus_lab.analysis.summary import THROUGHPUT, CellSummary, Comparison, compare

AP = "coco/AP"
_SUMMARY_METRICS = (
    AP,
    "coco/AP50",
    "coco/AP75",
    "coco/APS",
    "coco/APM",
    "coco/APL",
    "coco/AR",
    "cost/gflops",
    "cost/encoder_gflops",
    "cost/params",
    "cost/latency_ms",
    "cost/latency_p95_ms",
    "tokens/kept",
    "tokens/foreground_recall",
    THROUGHPUT,
)
_TERMINAL_WIDTH = 110
_NAME_LENGTH = 100
"""Characters of a cell's name in a metric name, which MLflow limits to 250 altogether."""


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[int] = frozenset({0})
    """Columns of words, set to the left; numbers are set to the right."""


def accuracy_table(comparison: Comparison) -> Table:
    """A row a cell: keep ratio, seeds, AP with interval, difference to the baseline, AP by size."""
    rows = []
    for cell in comparison.cells:
        difference = cell.difference(AP)
        rows.append(
            (
                q.printable(cell.name),
                q.ratio_of_tokens(cell.record.keep_ratio),
                q.ratio_of_tokens(cell.record.mean_keep_ratio),
                str(cell.n),
                value(cell, AP),
                _interval(AP, cell.estimate(AP)),
                _difference(cell, comparison, AP),
                _interval(AP, difference, sign=True),
                verdict(cell, AP),
                *(value(cell, f"coco/{name}") for name in ("AP50", "APS", "APM", "APL")),
                front_text(cell),
            )
        )
    columns = (
        "cell",
        "keep ratio",
        "mean over layers",
        "seeds",
        "AP",
        "95 % interval",
        "difference to baseline",
        "95 % interval",
        "decided?",
        "AP50",
        "APS",
        "APM",
        "APL",
        "on front (seeds)",
    )
    caption = "Accuracy: COCO AP at the last epoch, mean over seeds"
    return Table(caption, columns, tuple(rows), frozenset({0, 8, 13}))


def cost_table(comparison: Comparison) -> Table:
    """A row a cell: tokens, FLOPs, time, parameters, with multiples of the baseline."""
    columns: tuple[tuple[str, Callable[[CellSummary], str]], ...] = (
        ("tokens kept", lambda cell: value(cell, "tokens/kept")),
        ("foreground recall", lambda cell: value(cell, "tokens/foreground_recall")),
        ("GFLOPs", lambda cell: value(cell, "cost/gflops")),
        (f"{q.TIMES} baseline", lambda cell: _relative(cell, comparison, "cost/gflops")),
        ("encoder GFLOPs", lambda cell: value(cell, "cost/encoder_gflops")),
        (f"{q.TIMES} baseline", lambda cell: _relative(cell, comparison, "cost/encoder_gflops")),
        ("latency ms, median", lambda cell: value(cell, "cost/latency_ms")),
        ("p95", lambda cell: value(cell, "cost/latency_p95_ms")),
        (f"{q.TIMES} baseline", lambda cell: _relative(cell, comparison, "cost/latency_ms")),
        ("parameters", lambda cell: value(cell, "cost/params")),
        ("training images/s", lambda cell: value(cell, THROUGHPUT)),
    )
    rows = (
        (q.printable(cell.name), *(write(cell) for _, write in columns))
        for cell in comparison.cells
    )
    caption = "Cost: FLOPs saved are not time saved, so both stand here relative to the baseline"
    return Table(caption, ("cell", *(name for name, _ in columns)), tuple(rows))


def trials_table(record: ExperimentRecord) -> Table:
    """A row a trial: what became of it. Unfinished and stopped trials show how far they came.

    One that was read at several keep ratios has the AP of the largest.
    """
    rows = []
    for trial in record.trainings:
        stopped = record.stopped_before(trial)
        seconds = [value for _, value in trial.curves.get("train/seconds", [])]
        ap = trial.final(AP)
        rows.append(
            (
                f"{q.printable(record.trained(trial.cell))}, seed {trial.seed}",
                "stopped early" if stopped else trial.state.lower(),
                (str(trial.epochs) if trial.epochs else q.MISSING)
                + (f" of {stopped}" if stopped else ""),
                q.NO_BOX if ap is not None and q.is_no_box(AP, ap) else q.number(AP, ap),
                q.number("train/seconds", sum(seconds) if seconds else None),
                q.printable(trial.message) if trial.message else "",
            )
        )
    columns = ("trial", "state", "epochs", "AP", "training s", "reason")
    return Table("Trials", columns, tuple(rows), frozenset({0, 1, 5}))


def cells_as_json(record: ExperimentRecord) -> list[dict[str, Any]]:
    """Cells as JSON data, every metric in its own unit.

    Returns:
        A dict a cell: `name`, `n` (seeds), `mean` {metric: value}, `ci95` {metric: [low, high]}
        (None with one seed), `pareto`, `pareto_chance` and `knee_chance` (None where no two seeds
        are common), and `difference` {metric: {n, mean, ci95, shown, decided, p, p_holm, hedges_g,
        bootstrap95}} paired by seed with the baseline (None for the baseline or without one):
        `shown` means that this interval alone excludes 0, `decided` that it holds after Holm's
        correction over the cells. A metric for which the images have no box is None in `mean`; one
        that was not measured is absent.
    """
    comparison = compare(record)
    return [_cell_as_json(cell, comparison) for cell in comparison.cells]


def summary_metrics(record: ExperimentRecord) -> dict[str, float]:
    """What the tracker's summary run shows.

    Returns:
        `summary/<cell>/<metric>_mean` with `_ci95_low` and `_ci95_high`, `_difference` to the
        baseline likewise, `summary/<cell>/n` and `summary/<cell>/pareto` (0 or 1). Names have only
        ASCII letters, digits and `_ - . /`.
    """
    metrics: dict[str, float] = {}
    used: set[str] = set()
    for cell in compare(record).cells:
        prefix = f"summary/{_metric_part(cell.name, used)}"
        metrics[f"{prefix}/n"] = float(cell.n)
        if not cell.n:
            continue
        metrics[f"{prefix}/pareto"] = float(cell.on_front)
        for metric in _SUMMARY_METRICS:
            found = {"mean": cell.estimate(metric), "difference": cell.difference(metric)}
            for kind, estimate in found.items():
                if estimate is None:
                    continue
                name = f"{prefix}/{metric}_{kind}"
                metrics[name] = estimate.mean
                if estimate.low is not None and estimate.high is not None:
                    stem = f"{prefix}/{metric}" if kind == "mean" else name
                    metrics[f"{stem}_ci95_low"] = estimate.low
                    metrics[f"{stem}_ci95_high"] = estimate.high
    return metrics


def as_text(record: ExperimentRecord) -> str:
    """A table for the terminal, at most 110 columns wide, with a line on what it decides."""
    comparison = compare(record)
    lines: list[str] = []
    for name_width in (24, 18, 12):
        lines = _lines(comparison, name_width)
        if max(map(len, lines)) <= _TERMINAL_WIDTH:
            break
    if comparison.measured and max(cell.n for cell in comparison.measured) < 2:
        lines.append("One seed decides nothing: the order of the cells may change with another.")
    trials = record.trainings
    stopped = sum(record.stopped_before(trial) is not None for trial in trials)
    if stopped:
        lines.append(f"{stopped} of {len(trials)} trials were stopped early: not compared.")
    if record.exploratory:
        lines.append("Exploratory: the report says why this confirms nothing.")
    return "\n".join(lines)


def _lines(comparison: Comparison, name_width: int) -> list[str]:
    columns = ("cell", "keep", "mean", "n", "AP", "difference to baseline", "AP50", "recall",
               "GFLOPs", "ms", "front")  # fmt: skip
    names = q.distinct([cell.name for cell in comparison.cells], name_width)
    rows = [
        (
            name,
            q.ratio_of_tokens(cell.record.keep_ratio),
            q.ratio_of_tokens(cell.record.mean_keep_ratio),
            str(cell.n),
            value(cell, AP),
            " ".join(
                filter(
                    None,
                    (
                        _difference(cell, comparison, AP),
                        _interval(AP, cell.difference(AP), sign=True),
                    ),
                )
            ),
            value(cell, "coco/AP50"),
            value(cell, "tokens/foreground_recall"),
            value(cell, "cost/gflops"),
            value(cell, "cost/latency_ms"),
            front_text(cell),
        )
        for name, cell in zip(names, comparison.cells, strict=True)
    ]
    return _aligned([columns, *rows])


def value(cell: CellSummary, metric: str) -> str:
    """Mean of a metric as text: a number, `none` (no such box) or a dash (not measured)."""
    if metric in cell.no_box:
        return q.NO_BOX
    return q.number(metric, cell.mean(metric))


def verdict(cell: CellSummary, metric: str) -> str:
    """Whether a cell's difference to the baseline is decided; nothing when there is none."""
    if cell.difference(metric) is None:
        return ""
    return "yes" if cell.decided(metric) else "not decided"


def front_text(cell: CellSummary) -> str:
    """Whether the cell is on the Pareto front, and in how many seeds on that seed's own."""
    if not cell.n:
        return q.MISSING
    word = "yes" if cell.on_front else "no"
    on, seeds = cell.seeds_on_front
    return f"{word} ({on}/{seeds})" if seeds > 1 else word


def _difference(cell: CellSummary, comparison: Comparison, metric: str) -> str:
    if comparison.baseline is not None and cell.name == comparison.baseline.name:
        return "baseline"
    difference = cell.difference(metric)
    return q.signed(metric, difference.mean if difference else None)


def _interval(metric: str, found: Estimate | None, *, sign: bool = False) -> str:
    return q.interval(metric, found.low, found.high, sign=sign) if found else ""


def _relative(cell: CellSummary, comparison: Comparison, metric: str) -> str:
    reference = comparison.baseline.mean(metric) if comparison.baseline else None
    return q.ratio(cell.mean(metric), reference)


def _cell_as_json(cell: CellSummary, comparison: Comparison) -> dict[str, Any]:
    found = {metric: cell.estimate(metric) for metric in sorted(cell.values)}
    estimates = {metric: estimate for metric, estimate in found.items() if estimate}
    known = comparison.chances
    differences = None
    if cell.differences is not None:
        differences = {
            metric: {
                "n": difference.n,
                "mean": difference.mean,
                "ci95": _bounds(difference),
                "shown": difference.shown,
                "decided": cell.decided(metric),
                "p": difference.p_value,
                "p_holm": cell.adjusted.get(metric),
                "hedges_g": difference.effect_size,
                "bootstrap95": difference.bootstrap and list(difference.bootstrap),
            }
            for metric, difference in sorted(cell.differences.items())
        }
    return {
        "name": cell.name,
        "n": cell.n,
        "mean": {metric: estimate.mean for metric, estimate in estimates.items()}
        | dict.fromkeys(sorted(cell.no_box)),
        "ci95": {metric: _bounds(estimate) for metric, estimate in estimates.items()},
        "pareto": cell.on_front,
        "pareto_chance": known.front.get(cell.name) if known else None,
        "knee_chance": known.knee.get(cell.name) if known else None,
        "difference": differences,
    }


def _bounds(estimate: Estimate) -> list[float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return [estimate.low, estimate.high]


def _metric_part(name: str, used: set[str]) -> str:
    """A cell's name as one part of a metric name, different from those in `used`."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:_NAME_LENGTH].strip("._") or "cell"
    part, count = stem, 1
    while part.lower() in used:
        count += 1
        part = f"{stem}_{count}"
    used.add(part.lower())
    return part


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
