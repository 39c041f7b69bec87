"""The ablation table: the baseline, then a row for each deviation from it."""

from __future__ import annotations

from focus_lab.analysis import quantities as q
from focus_lab.analysis import tables
from focus_lab.analysis.summary import CellSummary, Comparison
from focus_lab.analysis.tables import Table


def ablation_table(comparison: Comparison) -> Table:
    """What each deviation does to the first objective, how surely, and at what cost."""
    metric, cost = comparison.axes
    label, cost_label = q.label(metric), q.label(cost)
    columns = (
        "cell",
        "change",
        "seeds",
        label,
        "difference",
        "95 % interval",
        "p (Holm)",
        "Hedges' g",
        "decided?",
        cost_label,
        f"{q.TIMES} baseline",
        "latency ms",
        "chance of front",
    )
    ordered = sorted(comparison.cells, key=lambda cell: not _is_baseline(cell, comparison))
    rows = [_row(cell, comparison, metric, cost) for cell in ordered]
    caption = f"Ablation: {label} and {cost_label} of each deviation from the baseline"
    if all(_is_named_by(change(cell), cell.name) for cell in ordered):
        # The names say it already, and a phone has no room to say it twice.
        short = tuple((row[0], *row[2:]) for row in rows)
        return Table(caption, (columns[0], *columns[2:]), short, frozenset({0, 7}))
    return Table(caption, columns, tuple(rows), frozenset({0, 1, 8}))


def paper_table(comparison: Comparison) -> Table:
    """The columns of the ablation for which a page of a paper has room; its caption explains."""
    metric, cost = comparison.axes
    label, cost_label = q.label(metric), q.label(cost)
    columns = ("cell", label, "difference", "95 % interval", "p (Holm)", cost_label)
    full = ablation_table(comparison)
    places = [full.columns.index(name) for name in columns]
    rows = tuple(tuple(row[place] for place in places) for row in full.rows)
    counts = sorted({cell.n for cell in comparison.cells}) or [0]
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    caption = f"{label} and {cost_label} of each cell: means over {seeds} seeds."
    compared = [cell for cell in comparison.cells if metric in cell.adjusted]
    if comparison.baseline is not None and compared:
        caption += (
            f" Differences to {q.printable(comparison.baseline.name)} are paired by seed, with "
            f"95 % t intervals; p after Holm's correction over {len(compared)} comparisons."
        )
    return Table(caption, columns, rows)


def change(cell: CellSummary) -> str:
    """What a cell changes in the base, as `field value` by the last part of each path."""
    changed = cell.record.overrides.items()
    text = ", ".join(f"{q.field(path)} {q.short(value)}" for path, value in changed)
    return q.printable(text) if text else "none"


def _is_named_by(text: str, name: str) -> bool:
    """Whether a name of the axes says what a change says."""
    return name.replace(" ", "=") == text.replace(", ", ",").replace(" ", "=")


def _row(cell: CellSummary, comparison: Comparison, metric: str, cost: str) -> tuple[str, ...]:
    difference = cell.difference(metric)
    effect = difference.effect_size if difference else None
    reference = comparison.baseline.mean(cost) if comparison.baseline else None
    known = comparison.chances.front if comparison.chances else {}
    is_baseline = _is_baseline(cell, comparison)
    return (
        q.printable(cell.name),
        change(cell),
        str(cell.n),
        tables.value(cell, metric),
        "baseline" if is_baseline else q.signed(metric, difference.mean if difference else None),
        q.interval(metric, difference.low, difference.high, sign=True) if difference else "",
        "" if is_baseline else q.probability(cell.adjusted.get(metric)),
        "" if is_baseline else q.effect(effect),
        tables.verdict(cell, metric),
        tables.value(cell, cost),
        q.ratio(cell.mean(cost), reference),
        tables.value(cell, "cost/latency_ms"),
        q.percent(known[cell.name]) if cell.name in known else q.MISSING,
    )


def _is_baseline(cell: CellSummary, comparison: Comparison) -> bool:
    return comparison.baseline is not None and cell.name == comparison.baseline.name
