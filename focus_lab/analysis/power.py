"""What so many seeds can find: the power of the paired t test, and its inverse."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

ALPHA = 0.05
"""Chance of a false finding that is accepted."""
POWER = 0.8
"""Chance of finding a difference that is there, which is asked for."""

_STEPS = 1_000


def power(n: int, effect: float, alpha: float = ALPHA) -> float:
    """Chance that a two-sided paired t test finds a difference.

    Args:
        n: seeds, at least 2.
        effect: the true difference in standard deviations of the paired differences.
        alpha: level of the test, in (0, 1).
    """
    shift = effect * math.sqrt(n)
    # Integrated over the deviation that is seen, at the middles of equally likely steps: scipy's
    # noncentral t is wrong for one degree of freedom and large shifts.
    bound = float(stdtrit(n - 1, 1 - alpha / 2)) * _deviations(n)  # [steps]
    return float((ndtr(shift - bound) + ndtr(-shift - bound)).mean())


def detectable_effect(n: int, alpha: float = ALPHA, wanted: float = POWER) -> float:
    """Smallest difference, in standard deviations, that `n` seeds find with the wanted chance.

    Args:
        n: seeds, at least 2.
        alpha: level of the test, in (0, 1).
        wanted: chance in (alpha, 1).
    """
    low, high = 0.0, 1.0
    while power(n, high, alpha) < wanted:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(n, middle, alpha) < wanted else (low, middle)
    return high


def seeds_to_detect(
    difference: float, deviation: float, alpha: float = ALPHA, limit: int = 50
) -> int | None:
    """Seeds that find a difference of this size with a chance of `POWER`.

    Args:
        difference: true mean of the paired differences.
        deviation: their standard deviation, positive.
        alpha: level of the test, in (0, 1).
        limit: most seeds to be thought of.

    Returns:
        At least 2; None when `limit` seeds are not enough.
    """
    effect = abs(difference) / deviation
    return next((n for n in range(2, limit + 1) if power(n, effect, alpha) >= POWER), None)


@functools.lru_cache
def _deviations(n: int) -> NDArray[np.float64]:
    """Equally likely standard deviations of `n` standard normal values, [_STEPS]."""
    middles = (np.arange(_STEPS) + 0.5) / _STEPS
    deviations: NDArray[np.float64] = np.sqrt(chdtri(n - 1, middles) / (n - 1))
    return deviations
