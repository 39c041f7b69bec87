"""One elastic training against one training a keep ratio: what it saves, and its price in AP."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from focus_lab.analysis import quantities as q
from focus_lab.analysis import tables
from focus_lab.analysis.phrases import joined
from focus_lab.analysis.power import ALPHA
from focus_lab.analysis.records import ExperimentRecord
from focus_lab.analysis.statistics import Difference, Estimate, estimate, holm, paired_difference
from focus_lab.analysis.summary import CellSummary, Comparison
from focus_lab.analysis.tables import AP, Table

_SECONDS = "train/seconds"


@dataclass(frozen=True)
class Gap:
    """One keep ratio: read from the elastic training, and trained alone."""

    reading: CellSummary
    alone: CellSummary
    difference: Difference | None
    """AP of the reading minus AP of the other, paired by seed; None without a common seed."""
    p_holm: float | None = None
    """Its p-value after Holm's correction over all gaps of the experiment; None with one seed."""

    @property
    def keep_ratio(self) -> str:
        """The ratio, as it stands in the spec."""
        return q.ratio_of_tokens(self.reading.record.keep_ratio)

    @property
    def decided(self) -> bool:
        """Whether the difference holds after Holm's correction. Never with one seed."""
        return self.p_holm is not None and self.p_holm < ALPHA


@dataclass(frozen=True)
class Elastic:
    """One elastic cell and the cells that it may take the place of."""

    trained: str
    """Name of the cell that was trained."""
    gaps: tuple[Gap, ...]
    """At least one, in the order of the design."""
    mean: Difference | None
    """Mean of the gaps, over the seeds that all of them have."""
    seconds: float | None
    """Seconds that the elastic training took, mean over the seeds of `saved`."""
    seconds_alone: float | None
    """Seconds of all cells that were trained alone together, likewise."""
    saved: Estimate | None
    """`seconds_alone` as a multiple of `seconds`: geometric mean over seeds, and its interval from
    their logarithms; None when no seed has all of these trainings."""


def compare_elastic(comparison: Comparison) -> tuple[Elastic, ...]:
    """Each elastic cell against cells that differ from a reading of it by having one ratio only.

    Empty when the experiment has no such cells, or no results of them.
    """
    by_name = {cell.name: cell for cell in comparison.measured}
    gaps: dict[str, list[Gap]] = {}
    for reading in comparison.measured:
        alone = by_name.get(reading.record.alone or "")
        if reading.record.read_from is None or alone is None:
            continue
        found = paired_difference(reading.values.get(AP, {}), alone.values.get(AP, {}))
        gaps.setdefault(reading.record.read_from, []).append(Gap(reading, alone, found))
    adjusted = holm(
        {
            gap.reading.name: gap.difference.p_value
            for group in gaps.values()
            for gap in group
            if gap.difference is not None and gap.difference.p_value is not None
        }
    )
    return tuple(
        _elastic(
            trained,
            tuple(replace(gap, p_holm=adjusted.get(gap.reading.name)) for gap in group),
            comparison.record,
        )
        for trained, group in gaps.items()
    )


def elastic_table(elastic: Elastic) -> Table:
    """A row a keep ratio that has both, and their mean."""
    rows = [
        (
            gap.keep_ratio,
            tables.value(gap.reading, AP),
            tables.value(gap.alone, AP),
            *_difference(gap.difference),
            q.probability(gap.p_holm),
            "yes" if gap.decided else "not decided",
            q.printable(gap.alone.name),
        )
        for gap in elastic.gaps
    ]
    if len(elastic.gaps) > 1:
        rows.append((f"mean of {len(rows)}", "", "", *_difference(elastic.mean), "", "", ""))
    columns = (
        "keep ratio",
        "AP, read",
        "AP, trained alone",
        "seeds",
        "difference",
        "95 % interval",
        "p (Holm)",
        "decided?",
        "cell trained alone",
    )
    caption = (
        f"One training for every keep ratio ({q.printable(elastic.trained)}): AP read from it "
        "against one training a ratio"
    )
    return Table(caption, columns, tuple(rows), frozenset({0, 7, 8}))


def saving(elastic: Elastic) -> str:
    """What the elastic training saves, as a sentence."""
    if elastic.saved is None:
        return "Compute saved: not known, no seed has all of these trainings."
    saved = elastic.saved
    count = len(elastic.gaps)
    trainings = f"the {count} trainings" if count > 1 else "the training"
    bounds = f" [{saved.low:.2f}, {saved.high:.2f}]" if saved.low and saved.high else " (one seed)"
    seeds = f" in the mean over {saved.n} seeds" if saved.n > 1 else ""
    return (
        f"Compute saved: {saved.mean:.2f}{q.TIMES}{bounds}: {trainings} alone took "
        f"{q.significant(elastic.seconds_alone or 0.0)} s, the elastic one "
        f"{q.significant(elastic.seconds or 0.0)} s{seeds}. Steps of training are counted and "
        "not evaluation; trials that ran side by side slow each other down."
    )


def verdict(elastic: Elastic) -> str:
    """AP and seconds against the trainings that it replaces: the end of a sentence."""
    decided = [gap.keep_ratio for gap in elastic.gaps if gap.decided]
    ratios = [gap.keep_ratio for gap in elastic.gaps]
    text = f"against cells trained at {joined(ratios)} alone "
    if elastic.mean is None:
        text += "AP cannot be compared, because no seed has all of them"
    else:
        bounds = q.interval(AP, elastic.mean.low, elastic.mean.high, sign=True) or "(one seed)"
        where = f"decided at {joined(decided)}" if decided else "decided at no ratio"
        over = " in the mean" if len(ratios) > 1 else ""
        text += f"AP differs by {q.signed(AP, elastic.mean.mean)} {bounds}{over}, {where}"
    if elastic.saved is not None:
        text += f"; those took {elastic.saved.mean:.1f}{q.TIMES} the seconds of the elastic one"
    return text


def elastic_as_json(elastic: Elastic) -> dict[str, Any]:
    """As JSON data.

    Returns:
        `trained`, `gaps` (a dict a ratio: `keep_ratio`, `reading` and `alone` (names of cells),
        `ap` and `ap_alone` (means over the seeds of each), `difference` {n, mean, ci95, p, p_holm,
        decided} or None), `mean_difference` {n, mean, ci95} or None, and `saved` {n, ratio, ci95,
        seconds, seconds_alone} or None. `ci95` is [low, high], or None with one seed.
    """
    saved = elastic.saved
    return {
        "trained": elastic.trained,
        "gaps": [
            {
                "keep_ratio": gap.reading.record.keep_ratio,
                "reading": gap.reading.name,
                "alone": gap.alone.name,
                "ap": gap.reading.mean(AP),
                "ap_alone": gap.alone.mean(AP),
                "difference": gap.difference
                and {
                    **_estimate(gap.difference),
                    "p": gap.difference.p_value,
                    "p_holm": gap.p_holm,
                    "decided": gap.decided,
                },
            }
            for gap in elastic.gaps
        ],
        "mean_difference": elastic.mean and _estimate(elastic.mean),
        "saved": saved
        and {
            "n": saved.n,
            "ratio": saved.mean,
            "ci95": _estimate(saved)["ci95"],
            "seconds": elastic.seconds,
            "seconds_alone": elastic.seconds_alone,
        },
    }


def _elastic(trained: str, gaps: tuple[Gap, ...], record: ExperimentRecord) -> Elastic:
    one = _seconds(record, gaps[0].reading)
    alone = [_seconds(record, gap.alone) for gap in gaps]
    seeds = sorted(one.keys() & set.intersection(*(set(seconds) for seconds in alone)))
    together = [sum(seconds[seed] for seconds in alone) for seed in seeds]
    saved = None
    if seeds:
        # Of logarithms: saving half and costing double are the same distance from no difference.
        logs = estimate([math.log(t / one[seed]) for t, seed in zip(together, seeds, strict=True)])
        low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
        saved = Estimate(logs.n, math.exp(logs.mean), low, high)
    return Elastic(
        trained,
        gaps,
        paired_difference(
            _mean_by_seed([gap.reading for gap in gaps]), _mean_by_seed([gap.alone for gap in gaps])
        ),
        sum(one[seed] for seed in seeds) / len(seeds) if seeds else None,
        sum(together) / len(seeds) if seeds else None,
        saved,
    )


def _seconds(record: ExperimentRecord, cell: CellSummary) -> dict[int, float]:
    """Seed -> seconds of training, of trials that recorded every epoch."""
    found = {}
    for trial in record.trials_of(cell.name):
        seconds = [value for _, value in trial.curves.get(_SECONDS, []) if value > 0]
        if seconds and len(seconds) == trial.epochs:
            found[trial.seed] = sum(seconds)
    return found


def _mean_by_seed(cells: list[CellSummary]) -> dict[int, float]:
    """Seed -> mean AP of the cells, over the seeds that all of them have."""
    values = [cell.values.get(AP, {}) for cell in cells]
    seeds = set.intersection(*(set(by_seed) for by_seed in values))
    return {seed: sum(by_seed[seed] for by_seed in values) / len(cells) for seed in seeds}


def _difference(found: Difference | None) -> tuple[str, str, str]:
    if found is None:
        return "0", q.MISSING, ""
    return str(found.n), q.signed(AP, found.mean), q.interval(AP, found.low, found.high, sign=True)


def _estimate(found: Estimate) -> dict[str, Any]:
    bounds = None if found.low is None or found.high is None else [found.low, found.high]
    return {"n": found.n, "mean": found.mean, "ci95": bounds}
