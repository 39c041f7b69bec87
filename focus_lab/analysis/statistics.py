"""What a handful of seeds can show: intervals, differences paired by seed, their size, Holm's p."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from focus_lab.analysis.bootstrap import bootstrap_interval

CONFIDENCE = 0.95
_ROUNDING = 1e-12
"""Spread below this share of the values is of their last digits."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, and where the mean over all seeds may lie."""

    n: int
    mean: float
    low: float | None = None
    """Lower end of the interval; None with one seed."""
    high: float | None = None


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean of differences paired by seed."""

    deviation: float | None = None
    """Standard deviation of the differences; None with one seed."""
    p_value: float | None = None
    """Two-sided paired t test; None with one seed."""
    bootstrap: tuple[float, float] | None = None
    """Bootstrap interval; None with too few seeds for one."""

    @property
    def effect_size(self) -> float | None:
        """Hedges' g; None with fewer than three seeds or without spread."""
        if self.deviation is None:
            return None
        return hedges_g(self.mean, self.deviation, self.n)

    @property
    def shown(self) -> bool | None:
        """Whether the interval excludes 0; None when one seed leaves no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and t interval.

    Args:
        values: one a seed, finite, at least one.
        confidence: coverage of the interval, in (0, 1).
    """
    mean, half = float(np.mean(values)), _half_width(values, confidence)
    if half is None:
        return Estimate(len(values), mean)
    return Estimate(len(values), mean, mean - half, mean + half)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean of `values - reference` over the seeds that both have.

    Pairing removes what a seed does to both: weights, order and augmentation start alike.

    Args:
        values: seed -> value.
        reference: seed -> value of the baseline.
        confidence: coverage of the interval, in (0, 1).

    Returns:
        None when no seed is common.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    differences = [values[seed] - reference[seed] for seed in seeds]
    mean, half = float(np.mean(differences)), _half_width(differences, confidence)
    if half is None:
        return Difference(len(seeds), mean)
    deviation = float(np.std(differences, ddof=1))
    if deviation <= _ROUNDING * max(abs(values[seed]) for seed in seeds):
        deviation = half = 0.0
    if deviation > 0:
        statistic = abs(mean) / (deviation / math.sqrt(len(seeds)))
        p_value = float(2 * stdtr(len(seeds) - 1, -statistic))
    else:
        p_value = float(mean == 0)
    return Difference(
        len(seeds),
        mean,
        mean - half,
        mean + half,
        deviation,
        p_value,
        bootstrap_interval(differences, confidence),
    )


def hedges_g(mean: float, deviation: float, n: int) -> float | None:
    """Size of a paired difference in standard deviations of the differences, without bias.

    Cohen's d times Gamma(m / 2) / (sqrt(m / 2) Gamma((m - 1) / 2)), m = n - 1 (Hedges,
    "Distribution Theory for Glass's Estimator of Effect Size", 1981).

    Returns:
        None where it does not exist: fewer than three values, or none that differ.
    """
    if n < 3 or deviation == 0:
        return None
    half = (n - 1) / 2
    correction = math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)
    return correction * mean / deviation


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, which bound the chance of even one false finding among them."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def half_width_in_deviations(n: int, confidence: float = CONFIDENCE) -> float:
    """Half-width of a t interval of `n` values, as a multiple of their standard deviation."""
    return float(stdtrit(n - 1, (1 + confidence) / 2)) / math.sqrt(n)


def _half_width(values: Sequence[float], confidence: float) -> float | None:
    if len(values) < 2:
        return None
    return half_width_in_deviations(len(values), confidence) * float(np.std(values, ddof=1))
