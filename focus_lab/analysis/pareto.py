"""The Pareto front: the cells that no other cell beats in every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def dominates(one: Sequence[float], other: Sequence[float], directions: Sequence[str]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better.

    Args:
        one: a value an objective.
        other: likewise.
        directions: "max" or "min" an objective.
    """
    signs = [1 if direction == "max" else -1 for direction in directions]
    gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def front(points: Mapping[str, Sequence[float]], directions: Sequence[str]) -> set[str]:
    """Names of the points that no other point dominates; equal points stand or fall together.

    Args:
        points: name -> a value an objective.
        directions: "max" or "min" an objective.
    """
    return {
        name
        for name, point in points.items()
        if not any(dominates(other, point, directions) for other in points.values())
    }
