"""What the seeds at hand decide, what they leave open, and how many would decide it."""

from __future__ import annotations

import numpy as np

from focus_lab.analysis import phrases
from focus_lab.analysis import quantities as q
from focus_lab.analysis.power import ALPHA, POWER, detectable_effect, seeds_to_detect
from focus_lab.analysis.statistics import Difference, half_width_in_deviations, paired_difference
from focus_lab.analysis.summary import CellSummary, Comparison

_NOTHING = 0.1
"""Differences below so many standard deviations are not worth the seeds that would show them."""


def certainty(comparison: Comparison) -> tuple[str, ...]:
    """Sentences on the first objective; at least one cell has a result."""
    metric, _ = comparison.axes
    if len(comparison.measured) < 2:
        return ("Only one cell has a result, so nothing is compared yet.",)
    if max(cell.n for cell in comparison.measured) < 2:
        return (_one_seed(comparison, metric), _rule_of_thumb())
    lead = _lead(comparison, metric)
    if comparison.baseline is None:
        return (
            *lead,
            "No cell with a result is the baseline, so no difference was computed; name one with "
            "sweep.baseline in the spec.",
        )
    cells = [cell for cell in comparison.measured if cell.difference(metric) is not None]
    return (
        *_decisions(cells, metric),
        *_second_opinion(cells, metric),
        *lead,
        *_what_would_be_found(cells, metric),
        *_seeds_wanted(cells, metric),
    )


def _one_seed(comparison: Comparison, metric: str) -> str:
    text = "One seed decides nothing: the order of the cells is not decided."
    found = [
        f"{phrases.name(cell)} {q.signed(metric, difference.mean)}"
        for cell in comparison.measured
        if (difference := cell.difference(metric)) is not None
    ]
    if found:
        return (
            f"{text} None of these differences to the baseline in {q.label(metric)} can be told "
            f"apart from chance: {'; '.join(found)}."
        )
    cells = phrases.names(comparison.measured)
    return f"{text} No difference between {cells} can be told from chance."


def _rule_of_thumb() -> str:
    widths = [f"{half_width_in_deviations(n):.1f} with {n}" for n in (2, 3, 5, 10)]
    return (
        "Rule of thumb: the half-width of the 95 % interval of a paired difference, in standard "
        f"deviations between seeds, is {', '.join(widths)} seeds. Begin with 3; take 5 or more for "
        "a difference about as large as the spread between seeds."
    )


def _decisions(cells: list[CellSummary], metric: str) -> list[str]:
    """Each difference to the baseline: decided after Holm's correction, or not."""
    groups: dict[str, list[str]] = {}
    looked_at = sum(metric in cell.adjusted for cell in cells)
    plural = "" if looked_at == 1 else "s"
    counted = f"Holm's correction for {looked_at} comparison{plural}"
    for cell in cells:
        difference = cell.difference(metric)
        assert difference is not None
        text = f"{phrases.name(cell)} {phrases.difference(metric, difference)}"
        if difference.low is None:
            opening = (
                "Not decided, with one seed in common with the baseline"
                if difference.n < 2
                else "Not decided, since equal differences in every seed leave the spread unknown"
            )
        else:
            p_value = cell.adjusted.get(metric)
            text += f" (p {q.probability(p_value)})"
            opening = (
                f"Decided (a difference to the baseline with p below {ALPHA} after {counted})"
                if cell.decided(metric)
                else "Not decided (may be chance, at the same level)"
            )
        groups.setdefault(opening, []).append(text)
    return [f"{opening}: {'; '.join(groups[opening])}." for opening in sorted(groups)]


def _second_opinion(cells: list[CellSummary], metric: str) -> list[str]:
    """Decided differences whose bootstrap interval has 0 in it: the values are far from normal."""
    doubtful = [
        phrases.name(cell)
        for cell in cells
        if cell.decided(metric)
        and (difference := cell.difference(metric)) is not None
        and difference.bootstrap is not None
        and difference.bootstrap[0] <= 0 <= difference.bootstrap[1]
    ]
    if not doubtful:
        return []
    return [
        "The bootstrap interval (BCa), which does not take the seeds' values for normal, has 0 in "
        f"it for {phrases.joined(doubtful)}: run more seeds before relying on that."
    ]


def _lead(comparison: Comparison, metric: str) -> list[str]:
    """Whether the best cell is better than the next: chosen by the result, so corrected for all."""
    ranked = comparison.ranked(metric)
    if len(ranked) < 2:
        return []
    best, next_one = ranked[:2]
    found = paired_difference(best.values[metric], next_one.values[metric])
    pairs = len(ranked) * (len(ranked) - 1) // 2
    text = f"Whether {phrases.name(best)} is better than the next, {phrases.name(next_one)}, is "
    if found is None or found.p_value is None:
        return [f"{text}not decided: they have fewer than two seeds in common."]
    p_value = min(1.0, pairs * found.p_value)
    how = f"{phrases.difference(metric, found)}, p {q.probability(p_value)} corrected for all pairs"
    sign = 1 if comparison.objectives[metric] == "max" else -1
    if sign * found.mean < 0:
        # Other cells' seeds have ranked them; the seeds that both have say otherwise.
        return [f"{text}not decided: where both have a seed, it is worse ({how})."]
    if p_value < ALPHA:
        return [f"{phrases.name(best)} is better than the next, {phrases.name(next_one)} ({how})."]
    return [f"{text}not decided ({how})."]


def _what_would_be_found(cells: list[CellSummary], metric: str) -> list[str]:
    """The smallest difference that the seeds at hand would have found four times of five."""
    deviation, tested = _deviation(cells, metric)
    if not deviation:
        return []
    counts = [difference.n for difference in tested]
    # Of cells that have lost seeds no design is made.
    seeds = max(sorted(set(counts)), key=counts.count)
    most = "" if len(set(counts)) < 2 else ", as most cells have,"
    smallest = detectable_effect(seeds, _level(cells, metric)) * deviation
    return [
        f"With {seeds} seeds{most} and the spread seen here (standard deviation of the paired "
        f"differences: {q.number(metric, deviation)}), a difference of "
        f"{q.number(metric, smallest)} would be found with a chance of {q.percent(POWER)}, a "
        "smaller one less often."
    ]


def _seeds_wanted(cells: list[CellSummary], metric: str) -> list[str]:
    """How many seeds the largest difference that is not decided would need."""
    deviation, _ = _deviation(cells, metric)
    open_ones = [
        (abs(difference.mean), phrases.name(cell))
        for cell in cells
        if not cell.decided(metric) and (difference := cell.difference(metric)) is not None
    ]
    if not open_ones or not deviation:
        return []
    size, name = max(open_ones)
    if size < _NOTHING * deviation:
        return []
    wanted = seeds_to_detect(size, deviation, _level(cells, metric))
    count = f"about {wanted}" if wanted else "more than 50"
    return [
        f"A true difference of {q.number(metric, size)}, as {name} has here, would need {count} "
        "seeds to be found with that chance."
    ]


def _level(cells: list[CellSummary], metric: str) -> float:
    """The level that the smallest p-value must pass in Holm's correction."""
    return ALPHA / sum(metric in cell.adjusted for cell in cells)


def _deviation(cells: list[CellSummary], metric: str) -> tuple[float, list[Difference]]:
    """Spread of the paired differences, pooled over cells, and those that have one.

    A cell without effect on these data repeats the baseline's numbers: its 0 is no spread.
    """
    found = [cell.difference(metric) for cell in cells]
    tested = [difference for difference in found if difference is not None and difference.deviation]
    if not tested:
        return 0.0, []
    squares = [(difference.deviation or 0.0) ** 2 for difference in tested]
    freedom = [difference.n - 1 for difference in tested]
    return float(np.sqrt(np.average(squares, weights=freedom))), tested
