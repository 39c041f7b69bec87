"""What an experiment's numbers say, in sentences, and what they do not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from focus_lab.analysis import quantities as q
from focus_lab.analysis.statistics import (
    Difference,
    half_width_in_deviations,
    holm,
    seeds_to_show,
)
from focus_lab.analysis.summary import CellSummary, Comparison

_RECALL = "tokens/foreground_recall"
_WANTED_RECALL = 0.95


@dataclass(frozen=True)
class Findings:
    """The top of the report."""

    answer: tuple[str, ...]
    """Three to six sentences or so."""
    certainty: tuple[str, ...]
    """What is decided and what is not, and how many seeds would decide it."""


def find(comparison: Comparison) -> Findings:
    """Read the findings off a comparison; says so when there is nothing to read."""
    unfinished = _unfinished(comparison)
    if not comparison.measured:
        return Findings(("No trial has succeeded yet, so there is no answer.", *unfinished), ())
    answer = (
        *_best(comparison),
        *_front(comparison),
        *_cheapest(comparison),
        *_foreground(comparison),
        *unfinished,
    )
    return Findings(answer, _certainty(comparison))


def _best(comparison: Comparison) -> list[str]:
    metric, _ = comparison.axes
    placed = [cell for cell in comparison.measured if cell.mean(metric) is not None]
    if not placed:
        return [f"{q.label(metric)} was not measured, so the cells cannot be ranked by it."]
    sign = 1 if comparison.objectives[metric] == "max" else -1
    ranked = sorted(placed, key=lambda cell: -sign * (cell.mean(metric) or 0.0))
    best, worst = ranked[0], ranked[-1]
    word = ("highest", "lowest") if sign > 0 else ("lowest", "highest")
    text = f"{_name(best)} has the {word[0]} {q.label(metric)}, {_with_interval(best, metric)}"
    if len(ranked) == 1:
        return [f"{_name(best)} reaches {q.label(metric)} {_with_interval(best, metric)}."]
    return [f"{text}; {_name(worst)} has the {word[1]}, {_with_interval(worst, metric)}."]


def _front(comparison: Comparison) -> list[str]:
    front = [cell for cell in comparison.measured if cell.on_front]
    if len(comparison.measured) < 2 or not front:
        return []
    labels = " against ".join(q.label(metric) for metric in comparison.objectives)
    unplaced = {
        cell.name: [
            q.label(metric) for metric in comparison.objectives if cell.mean(metric) is None
        ]
        for cell in comparison.measured
    }
    beaten = [cell for cell in comparison.measured if not (cell.on_front or unplaced[cell.name])]
    which = " of this one seed" if max(cell.n for cell in comparison.measured) < 2 else ""
    text = f"On the Pareto front{which} ({labels}): {_names(front)}"
    if beaten:
        text += (
            "; not on it, because another cell is better in one and no worse in the other: "
            f"{_names(beaten)}"
        )
    missing = [
        f"{q.printable(name)} ({' and '.join(labels)} not measured)"
        for name, labels in unplaced.items()
        if labels
    ]
    if missing:
        text += f"; it cannot be told of {', '.join(missing)}"
    return [f"{text}."]


def _cheapest(comparison: Comparison) -> list[str]:
    """The cheapest cell against the baseline: FLOPs, time and AP in one sentence."""
    baseline = comparison.baseline
    metric, _ = comparison.axes
    others = [
        cell
        for cell in comparison.measured
        if cell is not baseline and cell.mean("cost/gflops") is not None
    ]
    if baseline is None or not others or baseline.mean("cost/gflops") is None:
        return []
    cheapest = min(others, key=lambda cell: cell.mean("cost/gflops") or 0.0)
    flops = comparison.relative(cheapest, "cost/gflops")
    if flops is None or flops >= 1:
        return ["No cell computes fewer FLOPs than the baseline."]
    text = (
        f"The cheapest cell, {_name(cheapest)}, computes {flops:.2f}{q.TIMES} the baseline's FLOPs"
    )
    time = comparison.relative(cheapest, "cost/latency_ms")
    text += (
        f" and takes {time:.2f}{q.TIMES} its time"
        if time is not None
        else " (its time was not measured: FLOPs saved are not time saved)"
    )
    difference = cheapest.difference(metric)
    if difference is not None:
        text += f"; its {q.label(metric)} differs by {_difference(metric, difference)}"
    return [f"{text}."]


def _foreground(comparison: Comparison) -> list[str]:
    share = comparison.record.foreground_share
    if share is None:
        return []
    text = f"On average {q.percent(share)} of the tokens lie in boxes"
    enough = [cell for cell in comparison.measured if (cell.mean(_RECALL) or 0.0) >= _WANTED_RECALL]
    ratios = {cell.record.keep_ratio for cell in comparison.measured}
    if enough and len(ratios) > 1:
        smallest = min(enough, key=lambda cell: cell.record.keep_ratio)
        text += (
            f"; the smallest keep ratio whose first encoder layer still keeps at least "
            f"{q.percent(_WANTED_RECALL)} of the foreground tokens is "
            f"{q.ratio_of_tokens(smallest.record.keep_ratio)} ({_name(smallest)})"
        )
    return [f"{text}."]


def _unfinished(comparison: Comparison) -> list[str]:
    counts: dict[str, int] = {}
    for trial in comparison.record.trials:
        if trial.state != "SUCCEEDED":
            counts[trial.state.lower()] = counts.get(trial.state.lower(), 0) + 1
    if not counts:
        return []
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    total = len(comparison.record.trials)
    return [f"Of {total} trials {states}: listed below, and part of no mean."]


def _certainty(comparison: Comparison) -> tuple[str, ...]:
    metric, _ = comparison.axes
    if len(comparison.measured) < 2:
        return ("Only one cell has a result, so nothing is compared yet.",)
    if max(cell.n for cell in comparison.measured) < 2:
        return (_one_seed(comparison, metric), _rule_of_thumb())
    if comparison.baseline is None:
        return (
            "No cell with a result is the baseline, so no difference was computed; name one with "
            "sweep.baseline in the spec.",
        )
    differences = {
        cell.name: difference
        for cell in comparison.measured
        if (difference := cell.difference(metric)) is not None
    }
    sentences = []
    for shown, opening in (
        (True, "Shown (the 95 % interval of the difference to the baseline excludes 0)"),
        (False, "Not shown (the interval includes 0, so these cannot be told from the baseline)"),
        (None, "Undecided with one seed in common with the baseline"),
    ):
        found = [
            f"{q.printable(name)} {_difference(metric, difference)}"
            for name, difference in differences.items()
            if difference.shown is shown
        ]
        if found:
            sentences.append(f"{opening}: {'; '.join(found)}.")
    sentences += _multiplicity(differences)
    sentences += _seeds_wanted(metric, differences)
    return tuple(sentences)


def _one_seed(comparison: Comparison, metric: str) -> str:
    text = "One seed decides nothing: the order of the cells is not decided."
    found = [
        f"{q.printable(cell.name)} {q.signed(metric, difference.mean)}"
        for cell in comparison.measured
        if (difference := cell.difference(metric)) is not None
    ]
    if found:
        return (
            f"{text} None of these differences to the baseline in {q.label(metric)} can be told "
            f"apart from chance: {'; '.join(found)}."
        )
    return f"{text} No difference between {_names(comparison.measured)} can be told from chance."


def _rule_of_thumb() -> str:
    widths = [f"{half_width_in_deviations(n):.1f} with {n}" for n in (2, 3, 5, 10)]
    return (
        "Rule of thumb: the half-width of the 95 % interval of a paired difference, in standard "
        f"deviations between seeds, is {', '.join(widths)} seeds. Begin with 3; take 5 or more for "
        "a difference about as large as the spread between seeds."
    )


def _multiplicity(differences: dict[str, Difference]) -> list[str]:
    p_values = {
        name: difference.p_value
        for name, difference in differences.items()
        if difference.p_value is not None
    }
    claimed = [name for name in p_values if differences[name].shown]
    if len(p_values) < 2 or not claimed:
        return []
    adjusted = holm(p_values)
    kept = [name for name in claimed if adjusted[name] < 0.05]
    text = f"{len(p_values)} differences were looked at; after Holm's correction for that, "
    return [text + (f"{_joined(kept)} still holds." if len(kept) == 1 else
                    f"{_joined(kept)} still hold." if kept else "none still holds.")]  # fmt: skip


def _seeds_wanted(metric: str, differences: dict[str, Difference]) -> list[str]:
    """How many seeds the largest difference that is not shown would need, at the spread seen."""
    open_ones = {name: found for name, found in differences.items() if found.shown is False}
    deviations = [found.deviation for found in differences.values() if found.deviation is not None]
    if not open_ones or not deviations:
        return []
    deviation = float(np.sqrt(np.mean(np.square(deviations))))
    name, largest = max(open_ones.items(), key=lambda item: abs(item[1].mean))
    wanted = seeds_to_show(largest.mean, deviation)
    size = q.number(metric, abs(largest.mean))
    count = f"about {wanted}" if wanted else "more than 50"
    return [
        f"A difference of {size}, as {q.printable(name)} has, would need {count} seeds at the "
        "spread seen here (standard deviation of the paired differences: "
        f"{q.number(metric, deviation)})."
    ]


def _with_interval(cell: CellSummary, metric: str) -> str:
    found = cell.estimate(metric)
    if found is None:
        return q.MISSING
    text = q.number(metric, found.mean)
    if found.low is None:
        return f"{text} (one seed)"
    bounds = f"{q.number(metric, found.low)} to {q.number(metric, found.high)}"
    return f"{text} (95 % interval {bounds}, {found.n} seeds)"


def _difference(metric: str, difference: Difference) -> str:
    bounds = q.interval(metric, difference.low, difference.high, sign=True) or "(one seed)"
    return f"{q.signed(metric, difference.mean)} {bounds}"


def _name(cell: CellSummary) -> str:
    return q.printable(cell.name)


def _names(cells: Sequence[CellSummary]) -> str:
    return _joined([cell.name for cell in cells])


def _joined(names: Sequence[str]) -> str:
    clean = [q.printable(name) for name in names]
    return clean[0] if len(clean) == 1 else f"{', '.join(clean[:-1])} and {clean[-1]}"
