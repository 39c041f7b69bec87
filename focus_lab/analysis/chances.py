"""How sure the front and its knee are, given that a few seeds stand for all.

Method: what the cells' means over all seeds may be is drawn from a multivariate t distribution
around the means that were seen, with the seeds' own covariance: n - 1 degrees of freedom, scale
S / n. Whatever a seed does to all cells alike stays common to them in every draw. For two cells the
chance that one is better is exactly 1 - p / 2 of the two-sided paired t test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from focus_lab.analysis.knee import knee
from focus_lab.analysis.pareto import on_front

DRAWS = 10_000
SEED = 0


@dataclass(frozen=True)
class Chances:
    """Shares of the draws, by cell."""

    seeds: tuple[int, ...]
    """Seeds that all of these cells have."""
    front: dict[str, float]
    """Cell -> share in which no other cell dominates it."""
    knee: dict[str, float]
    """Cell -> share in which it is the knee; less than 1 together where some fronts have none.
    Empty unless there are two objectives."""
    once: tuple[str, ...] = ()
    """Objectives that were measured with one seed of a cell only, and are taken as certain."""


def chances(
    cells: Mapping[str, Mapping[str, Mapping[int, float]]], objectives: Mapping[str, str]
) -> Chances | None:
    """Chances of the cells that have every objective, in two common seeds or more.

    Where cells lack seeds, as many cells and seeds as go together are taken.

    Args:
        cells: cell -> metric -> seed -> value.
        objectives: metric -> "max" or "min".

    Returns:
        None when no two seeds are common or fewer than two cells remain: nothing is decided then.
    """
    # Latency is measured on one trial of a cell: it has no spread that is known of.
    once = tuple(
        metric
        for metric in objectives
        if cells and max(len(values.get(metric, {})) for values in cells.values()) < 2
    )
    repeated = [metric for metric in objectives if metric not in once]
    placed = {
        name: values
        for name, values in cells.items()
        if all(len(values.get(metric, {})) > 1 for metric in repeated)
        and all(values.get(metric) for metric in once)
    }
    if len(placed) < 2 or not repeated:
        return None
    names, seeds = _in_common(
        {
            name: set.intersection(*(set(values[metric]) for metric in repeated))
            for name, values in placed.items()
        }
    )
    if len(names) < 2 or len(seeds) < 2:
        return None
    placed = {name: placed[name] for name in placed if name in names}
    columns = [
        list(values[metric].values())[:1] * len(seeds)
        if metric in once
        else [values[metric][seed] for seed in seeds]
        for values in placed.values()
        for metric in objectives
    ]
    means = draw_means(np.array(columns).T)
    points = means.reshape(DRAWS, len(placed), len(objectives))
    directions = tuple(objectives.values())
    front = on_front(points, directions).mean(axis=0)  # [cells]
    shares = {}
    if len(directions) == 2:
        found = knee(points, (directions[0], directions[1]))
        shares = {name: float((found == row).mean()) for row, name in enumerate(placed)}
    return Chances(tuple(seeds), dict(zip(placed, map(float, front), strict=True)), shares, once)


def _in_common(seeds: Mapping[str, set[int]]) -> tuple[set[str], list[int]]:
    """Cells and the seeds that all of these have: as many of both as go together.

    One cell that has lost its seeds does not take those of all others away.
    """
    by_number = sorted(seeds.values(), key=len, reverse=True)
    candidates = list(itertools.accumulate(by_number, lambda one, other: one & other))
    best = max(
        candidates,
        key=lambda found: (len(found) - 1) * sum(found <= other for other in seeds.values()),
    )
    return {name for name, found in seeds.items() if best <= found}, sorted(best)


def draw_means(
    values: NDArray[np.float64] | Sequence[Sequence[float]], draws: int = DRAWS, seed: int = SEED
) -> NDArray[np.float64]:
    """What the means over all seeds may be, given a few; see the head of this file.

    Args:
        values: [n seeds, k quantities], n >= 2, finite.
        draws: how many.
        seed: of the draws.

    Returns:
        [draws, k]. A quantity that is the same in every seed is the same in every draw.
    """
    seen = np.asarray(values, dtype=np.float64)
    n = len(seen)
    constant = np.ptp(seen, axis=0) == 0  # [k]
    # Not the mean, which rounds: equal costs must stay equal.
    mean = np.where(constant, seen[0], seen.mean(axis=0))
    apart = seen - mean  # [n, k]
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((draws, n))
    # Centred weights: the rounding of the mean does not come back through them.
    normal -= normal.mean(axis=1, keepdims=True)
    wider = np.sqrt((n - 1) / generator.chisquare(n - 1, (draws, 1)))
    drawn: NDArray[np.float64] = mean + wider * (normal @ apart) / math.sqrt(n * (n - 1))
    return drawn
