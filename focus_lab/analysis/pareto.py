"""The Pareto front: the cells that no other cell beats in every objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


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


def on_front(points: NDArray[np.float64], directions: Sequence[str]) -> NDArray[np.bool_]:
    """`front` of many sets of points at once.

    Args:
        points: [..., cells, objectives], finite.
        directions: "max" or "min" an objective.

    Returns:
        [..., cells].
    """
    placed = gains(points, directions)
    members = np.ones(points.shape[:-1], dtype=np.bool_)
    for row in range(points.shape[-2]):
        other = placed[..., row : row + 1, :]
        members &= ~((other >= placed).all(axis=-1) & (other > placed).any(axis=-1))
    return members


def gains(points: NDArray[np.float64], directions: Sequence[str]) -> NDArray[np.float64]:
    """Points with the objectives that are to be low negated, so that more is better in all."""
    signs = np.array([1.0 if direction == "max" else -1.0 for direction in directions])
    turned: NDArray[np.float64] = points * signs
    return turned
