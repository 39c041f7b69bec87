"""What an experiment's numbers say, in sentences, and what they do not decide."""

from __future__ import annotations

from dataclasses import dataclass

from focus_lab.analysis import phrases
from focus_lab.analysis import quantities as q
from focus_lab.analysis.certainty import certainty
from focus_lab.analysis.elastic import compare_elastic, verdict
from focus_lab.analysis.phrases import with_interval
from focus_lab.analysis.summary import CellSummary, Comparison
from focus_lab.specs.compose import override
from focus_lab.specs.plan import KEEP_RATIO

_RECALL = "tokens/foreground_recall"
_WANTED_RECALL = 0.95
_AP = "coco/AP"
"""Part of the name of AP of every kind."""


@dataclass(frozen=True)
class Findings:
    """The top of the report."""

    answer: tuple[str, ...]
    """Three to eight sentences or so."""
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
        *_knee(comparison),
        *_cheapest(comparison),
        *_foreground(comparison),
        *_read(comparison),
        *_without_effect(comparison),
        *unfinished,
    )
    return Findings(answer, certainty(comparison))


def _best(comparison: Comparison) -> list[str]:
    metric, _ = comparison.axes
    ranked = comparison.ranked(metric)
    if not ranked:
        return [f"{q.label(metric)} was not measured, so the cells cannot be ranked by it."]
    best, worst = ranked[0], ranked[-1]
    rising = comparison.objectives[metric] == "max"
    word = ("highest", "lowest") if rising else ("lowest", "highest")
    text = (
        f"{phrases.name(best)} has the {word[0]} {q.label(metric)}, {with_interval(best, metric)}"
    )
    if len(ranked) == 1:
        return [f"{phrases.name(best)} reaches {q.label(metric)} {with_interval(best, metric)}."]
    if best.n < 2:
        text += ", which one seed does not decide"
    text += f"; {phrases.name(worst)} has the {word[1]}, {with_interval(worst, metric)}."
    if comparison.uneven:
        text += (
            " Cells lack seeds that others have: order, front and knee go by means that are "
            "adjusted for it (cell + seed by least squares), not by those that are shown."
        )
    return [text]


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
    text = f"On the Pareto front{which} ({labels}): {_with_chances(front, comparison)}"
    if beaten:
        text += (
            "; not on it, because another cell is better in one and no worse in the other: "
            f"{_with_chances(beaten, comparison)}"
        )
    missing = [
        f"{q.printable(name)} ({' and '.join(labels)} not measured)"
        for name, labels in unplaced.items()
        if labels
    ]
    if missing:
        text += f"; it cannot be told of {', '.join(missing)}"
    if comparison.chances is not None:
        text += (
            ". In brackets the chance of being on the front if all seeds were run, drawn from the "
            f"{len(comparison.chances.seeds)} that these cells have in common"
        )
        others = [cell for cell in (*front, *beaten) if cell.name not in comparison.chances.front]
        if others:
            text += f"; {phrases.names(others)}, with too few seeds, cannot be part of that"
    elif not which:
        text += ". That is not decided: no two cells have been measured with two seeds in common"
    return [f"{text}."]


def _with_chances(cells: list[CellSummary], comparison: Comparison) -> str:
    known = comparison.chances.front if comparison.chances else {}
    return phrases.joined(
        [
            f"{phrases.name(cell)} ({q.percent(known[cell.name])})"
            if cell.name in known
            else phrases.name(cell)
            for cell in cells
        ]
    )


def _knee(comparison: Comparison) -> list[str]:
    """Where the front bends, and how sure that is."""
    if comparison.knee is None:
        return []
    text = f"The front's knee, after which more cost buys less, is {q.printable(comparison.knee)}"
    if comparison.chances is None:
        return [f"{text} as far as single seeds tell, which decides nothing."]
    shares = sorted(comparison.chances.knee.items(), key=lambda item: -item[1])
    drawn = [
        f"{q.printable(name)} in {q.percent(share)}" for name, share in shares if share >= 0.01
    ]
    none = 1 - sum(comparison.chances.knee.values())
    if none >= 0.01:
        drawn.append(f"no cell in {q.percent(none)}")
    return [f"{text}; of the draws the knee is {phrases.joined(drawn)}." if drawn else f"{text}."]


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
    name = phrases.name(cheapest)
    text = f"The cheapest cell, {name}, computes {flops:.2f}{q.TIMES} the baseline's FLOPs"
    time = comparison.relative(cheapest, "cost/latency_ms")
    text += (
        f" and takes {time:.2f}{q.TIMES} its time"
        if time is not None
        else " (its time was not measured: FLOPs saved are not time saved)"
    )
    difference = cheapest.difference(metric)
    if difference is not None:
        text += f"; its {q.label(metric)} differs by {phrases.difference(metric, difference)}"
    return [f"{text}."]


def _foreground(comparison: Comparison) -> list[str]:
    share = comparison.record.foreground_share
    if share is None:
        return []
    text = f"On average {q.percent(share)} of the tokens lie in boxes"
    alike = _but_for_the_ratio(comparison)
    enough = [cell for cell in alike if (cell.mean(_RECALL) or 0.0) >= _WANTED_RECALL]
    if enough and len({cell.record.keep_ratio for cell in alike}) > 1:
        smallest = min(enough, key=lambda cell: cell.record.keep_ratio)
        text += (
            f"; the smallest keep ratio at which at least {q.percent(_WANTED_RECALL)} of the "
            f"foreground tokens are refined is {q.ratio_of_tokens(smallest.record.keep_ratio)} "
            f"({phrases.name(smallest)})"
        )
    return [f"{text}."]


def _but_for_the_ratio(comparison: Comparison) -> list[CellSummary]:
    """Measured cells that differ from the baseline, or all from the base, in the keep ratio alone.

    No cells where it is no share of tokens chosen by a score: with all tokens, those of the ground
    truth, or ratios by level, of which it is a factor.
    """
    record = comparison.record
    changes = {
        cell.name: {path: v for path, v in cell.overrides.items() if path != KEEP_RATIO}
        for cell in record.cells
    }
    baseline = next((cell for cell in record.cells if cell.is_baseline), None)
    wanted = changes[baseline.name] if baseline else {}
    if baseline is None and any(changes.values()):
        return []
    content = record.spec
    for path, value in wanted.items():
        content = override(content, path, value)
    selection = content.get("model", {}).get("token_selection", {})
    kind = selection.get("scoring", {}).get("kind")
    if kind in ("dense", "oracle") or selection.get("level_keep_ratios"):
        return []
    return [cell for cell in comparison.measured if changes[cell.name] == wanted]


def _read(comparison: Comparison) -> list[str]:
    """Which cells are one training, read at several keep ratios."""
    groups: dict[str, list[CellSummary]] = {}
    for cell in comparison.measured:
        if cell.record.read_from is not None:
            groups.setdefault(cell.record.read_from, []).append(cell)
    compared = {one.trained: verdict(one) for one in compare_elastic(comparison)}
    unknown = "cells that were each trained at their own ratio may differ"
    return [
        f"{phrases.names(cells)} are the weights of one training a seed ({q.printable(trained)}), "
        f"read at several keep ratios: {compared.get(trained, unknown)}."
        for trained, cells in groups.items()
    ]


def _without_effect(comparison: Comparison) -> list[str]:
    """Cells whose trainings were the baseline's to the last digit, as no true difference is."""
    if comparison.baseline is None:
        return []
    reference = _ap_curves(comparison, comparison.baseline)
    same = []
    for cell in comparison.measured:
        curves = _ap_curves(comparison, cell)
        shared = curves.keys() & reference.keys()
        is_other = cell.name != comparison.baseline.name and cell.record.read_from is None
        if is_other and shared and all(curves[seed] == reference[seed] for seed in shared):
            same.append(cell)
    if not same:
        return []
    have, change = ("has", "changes") if len(same) == 1 else ("have", "change")
    return [
        f"{phrases.names(same)} {have} exactly the baseline's numbers, in every epoch: what "
        f"{'it' if len(same) == 1 else 'they'} {change} had no effect on these data, so that "
        "nothing is compared."
    ]


def _ap_curves(comparison: Comparison, cell: CellSummary) -> dict[int, dict[str, object]]:
    """Seed -> AP of every kind by epoch, of trials that detected anything."""
    found = {}
    for trial in comparison.record.trials_of(cell.name):
        curves = {metric: points for metric, points in trial.curves.items() if _AP in metric}
        if any(value > 0 for points in curves.values() for _, value in points):
            found[trial.seed] = dict[str, object](curves)
    return found


def _unfinished(comparison: Comparison) -> list[str]:
    """What is part of no mean: trials without success, and those that were stopped early."""
    record = comparison.record
    counts: dict[str, int] = {}
    trials = record.trainings
    for trial in trials:
        if trial.state != "SUCCEEDED":
            counts[trial.state.lower()] = counts.get(trial.state.lower(), 0) + 1
    stopped = [trial for trial in record.trials if record.stopped_before(trial) is not None]
    if stopped:
        counts["stopped early"] = len({trial.id for trial in stopped})
    if not counts:
        return []
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    sentences = [f"Of {len(trials)} trials {states}: listed below, and part of no mean."]
    named = dict.fromkeys(trial.cell for trial in stopped)
    unranked = [cell for cell in comparison.cells if cell.name in named and not cell.n]
    if unranked:
        sentences.append(
            f"Every trial of {phrases.names(unranked)} that succeeded was stopped early, so "
            "nothing is ranked there: numbers of a shorter training are not compared."
        )
    flattered = [cell for cell in comparison.cells if cell.name in named and cell.n]
    if flattered:
        sentences.append(
            f"Some seeds of {phrases.names(flattered)} were stopped early: means there are those "
            "of the seeds that went on because they did well, which flatters them."
        )
    return sentences


def exploratory(comparison: Comparison) -> str:
    """A warning when the experiment can only suggest; empty when it can confirm."""
    reasons = comparison.record.exploratory
    if not reasons:
        return ""
    return (
        f"Exploratory: {', and '.join(reasons)}. Intervals and p-values do not know that, so they "
        "are too sure of themselves; confirm what looks good in a grid of a few cells with new "
        "seeds and no early stopping."
    )
