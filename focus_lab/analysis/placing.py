"""Where cells stand when some of them lack seeds that others have.

A seed that is easy, or hard, moves all cells alike. The mean of a cell that lacks it is not to be
compared with the mean of one that has it: a cell that lost its worst seed would look better than
it is. Values are therefore fitted by least squares as cell + seed, and a cell stands at the mean of
its fit over all seeds. Between two cells alone, that is the mean difference in the seeds that both
have.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def means_over_all_seeds(values: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Cell -> its mean, as if every cell had every seed; without cells that have no value.

    Plain means where all cells have the same seeds, where seeds make no difference (a count of
    FLOPs), and where too few are in common to tell cells from seeds.

    Args:
        values: cell -> seed -> value, finite.
    """
    placed = {cell: found for cell, found in values.items() if found}
    plain = {
        cell: float(np.mean([found[s] for s in sorted(found)])) for cell, found in placed.items()
    }
    sets = {frozenset(found) for found in placed.values()}
    if len(sets) < 2 or all(len(set(found.values())) == 1 for found in placed.values()):
        return plain
    seeds = sorted(frozenset().union(*sets))
    rows, seen = [], []
    for place, found in enumerate(placed.values()):
        for seed, value in found.items():
            row = np.zeros(len(placed) + len(seeds))
            row[place] = row[len(placed) + seeds.index(seed)] = 1.0
            rows.append(row)
            seen.append(value)
    design = np.array(rows)  # [values, cells + seeds]
    fit, _, rank, _ = np.linalg.lstsq(design, np.array(seen), rcond=None)
    # One rank is always missing: what all cells gain, all seeds may lose.
    if rank < len(placed) + len(seeds) - 1:
        return plain
    easy = float(fit[len(placed) :].mean())
    return {cell: float(fit[place]) + easy for place, cell in enumerate(placed)}
