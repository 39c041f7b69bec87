"""The figures of procedural scenes as polygons: eight classes, and distractors of no class.

A polygon is float64 [n, 2] with (x, y) vertices; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]


@dataclass(frozen=True)
class Outline:
    """A figure's edge."""

    edge: Polygon
    """Outer edge."""
    hole: Polygon | None = None
    """Edge of the hole, if there is one."""

    def placed(self, angle: float, squeeze: float, side: float) -> Outline:
        """Squeezed across, turned and scaled, with a box that starts at (0, 0).

        Args:
            angle: radians.
            squeeze: factor of the width before turning, in (0, 1].
            side: longer side of the box, in pixels.
        """
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = np.array([[cos * squeeze, sin * squeeze], [-sin, cos]])
        edge = self.edge @ matrix
        low = edge.min(axis=0)
        scale = side / float((edge.max(axis=0) - low).max())
        hole = None if self.hole is None else (self.hole @ matrix - low) * scale
        return Outline((edge - low) * scale, hole)

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height) of a placed outline, in pixels."""
        width, height = self.edge.max(axis=0).tolist()
        return width, height


def _around(angles: NDArray[np.floating]) -> Polygon:
    """Points of the unit circle, [n] -> [n, 2]."""
    return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float64)


def _arc(radius: float, start: float, stop: float, points: int) -> Polygon:
    return _around(np.linspace(start, stop, points)) * radius


def _circle(radius: float = 1.0) -> Polygon:
    return _arc(radius, 0.0, 2 * math.pi, 49)[:-1]


def _star() -> Polygon:
    angles = np.arange(10) * (math.pi / 5) - math.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _around(angles) * radii[:, None]


def _crescent() -> Polygon:
    # The outer disc less a disc of radius .75 whose centre is .5 to the right; they meet at x =
    # .6875.
    outer = math.acos(0.6875)
    inner = math.atan2(math.sin(outer), 0.6875 - 0.5)
    bite = _arc(0.75, inner, 2 * math.pi - inner, 25)[::-1] + np.array([0.5, 0.0])
    return np.concatenate((_arc(1.0, outer, 2 * math.pi - outer, 33), bite))


def _points(*vertices: tuple[float, float]) -> Polygon:
    return np.array(vertices, dtype=np.float64)


_ARM = 0.34
CLASSES: dict[str, Outline] = {
    "circle": Outline(_circle()),
    "square": Outline(_points((-1, -1), (1, -1), (1, 1), (-1, 1))),
    "triangle": Outline(_points((0, -1), (1, 0.8), (-1, 0.8))),
    "ring": Outline(_circle(), _circle(0.52)),
    "cross": Outline(
        _points(
            *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
            *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
        )
    ),
    "star": Outline(_star()),
    "crescent": Outline(_crescent()),
    "arrow": Outline(
        _points(
            (-1, -0.28),
            (0.05, -0.28),
            (0.05, -0.85),
            (1, 0),
            (0.05, 0.85),
            (0.05, 0.28),
            (-1, 0.28),
        )
    ),
}
"""Class name -> outline. A data set of C classes uses the first C."""

MAX_TURN = math.radians(20)
"""Objects are turned by at most this much, so that a turned square is no diamond."""


def _ellipse(rng: np.random.Generator) -> Outline:
    return Outline(_circle() * np.array([1.0, rng.uniform(0.3, 0.55)]))


def _half_disc(_: np.random.Generator) -> Outline:
    return Outline(_arc(1.0, 0.0, math.pi, 25))


def _bar(rng: np.random.Generator) -> Outline:
    thickness = rng.uniform(0.1, 0.3)
    return Outline(_points((-1, -thickness), (1, -thickness), (1, thickness), (-1, thickness)))


def _corner(rng: np.random.Generator) -> Outline:
    arm = rng.uniform(-0.5, -0.2)
    return Outline(_points((-1, -1), (arm, -1), (arm, -arm), (1, -arm), (1, 1), (-1, 1)))


def _blob(rng: np.random.Generator) -> Outline:
    angles = np.arange(40) * (2 * math.pi / 40)
    radii = np.ones(40)
    for waves in (2, 3, 5):
        phase = rng.uniform(0, 2 * math.pi)
        radii += rng.uniform(0.1, 0.3) * np.sin(waves * angles + phase)
    return Outline(_around(angles) * radii[:, None])


DISTRACTORS: tuple[Callable[[np.random.Generator], Outline], ...] = (
    _ellipse,
    _half_disc,
    _bar,
    _corner,
    _blob,
)
"""Makers of figures that belong to no class."""
