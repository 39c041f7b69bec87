"""The knee of a front: where more cost begins to buy less."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focus_lab.analysis.pareto import gains, on_front


def knee(points: NDArray[np.float64], directions: tuple[str, str]) -> NDArray[np.int64]:
    """Index of the front's point that lies highest above the line between the front's ends.

    Both objectives are scaled to [0, 1] over the front first (Satopaa et al., "Finding a Kneedle in
    a Haystack", 2011): the height of a point is its share of the gain less its share of the cost.

    Args:
        points: [..., cells, 2], finite; the first objective is gained, the second paid.
        directions: "max" or "min" an objective.

    Returns:
        [...], -1 where the front has fewer than three different points or none above the line.
    """
    placed = gains(points, directions)
    members = on_front(points, directions)  # [..., cells]
    inside = np.where(members[..., None], placed, np.nan)
    # Some point is always on the front, so no row is all nan.
    low = np.nanmin(inside, axis=-2, keepdims=True)
    span = np.nanmax(inside, axis=-2, keepdims=True) - low
    scaled = np.divide(inside - low, span, out=np.full_like(inside, np.nan), where=span > 0)
    # The second is a gain by now: 1 at the cheapest point, 0 at the dearest.
    height = scaled[..., 0] - (1 - scaled[..., 1])  # [..., cells]
    height = np.where(np.isnan(height), -np.inf, height)
    best = height.argmax(axis=-1)
    # The ends lie on the line, up to rounding.
    return np.where(height.max(axis=-1) > 1e-9, best, -1)
