"""The layout of a procedural scene: which figures stand where, before anything is painted.

Layouts cost a fraction of a painted scene, so ground truth and foreground shares never need pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from focus_lab.data.outlines import CLASSES, DISTRACTORS, MAX_TURN, Outline
from focus_lab.data.streams import Stream, generator
from focus_lab.specs.data import ShapesData

MAX_OVERLAP = 0.3
"""A figure may hide less than this share of the smaller of two boxes."""
_TRIES = 20
_SHRINK = 0.7
# Extents are whole eighths of a pixel: exact in float32, so that boxes survive JSON bit for bit.
_GRAIN = 8
_PROBES = 128
_MAX_TILT = 12.0
_CLASS_OUTLINES = tuple(CLASSES.values())


@dataclass(frozen=True)
class Figure:
    """One figure of a scene."""

    outline: Outline
    """Relative to (left, top), in pixels."""
    label: int | None
    """Class of an object; `None` marks a distractor."""
    left: int
    top: int
    width: float
    height: float

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels."""
        return self.left, self.top, self.left + self.width, self.top + self.height


def lay_out(spec: ShapesData, rng: np.random.Generator, tilt: float) -> list[Figure]:
    """Figures of a scene in drawing order: distractors first, then objects from large to small.

    Args:
        spec: the data set.
        rng: the scene's layout stream.
        tilt: exponent of the size law, see `side_from`.

    Returns:
        Figures inside the image. An object that finds no place after several tries, each time
        smaller, is left out, so crowded scenes may hold fewer objects than drawn.
    """
    objects = _objects(spec, rng, tilt, int(rng.integers(spec.objects[0], spec.objects[1] + 1)))
    distractors: list[Figure] = []
    for _ in range(int(rng.integers(spec.distractors[0], spec.distractors[1] + 1))):
        outline = DISTRACTORS[int(rng.integers(len(DISTRACTORS)))](rng)
        _add(
            distractors,
            objects,
            outline,
            None,
            side_from(rng.random(), spec.object_size, tilt),
            spec,
            rng,
        )
    return distractors + objects


def _objects(spec: ShapesData, rng: np.random.Generator, tilt: float, count: int) -> list[Figure]:
    sides = sorted(
        (side_from(rng.random(), spec.object_size, tilt) for _ in range(count)), reverse=True
    )
    objects: list[Figure] = []
    for side in sides:
        label = int(rng.integers(spec.num_classes))
        _add(objects, [], _CLASS_OUTLINES[label], label, side, spec, rng)
    return objects


def object_boxes(figures: list[Figure]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes float32 [n, 4] (xyxy, pixels) and labels int64 [n] of the objects, in drawing order."""
    objects = [(figure.box_xyxy, figure.label) for figure in figures if figure.label is not None]
    boxes = np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4)
    return boxes, np.array([label for _, label in objects], dtype=np.int64)


def side_from(share: float, limits: tuple[int, int], tilt: float) -> float:
    """Side at the given quantile of the size law, in pixels.

    The density of log(side) between the limits is proportional to exp(tilt * log(side)): tilt 0 is
    log-uniform, a positive tilt favours large objects. Unlike scaled and clipped sizes, no size
    piles up at a limit.

    Args:
        share: quantile in [0, 1).
        limits: least and largest side in pixels.
        tilt: any number.
    """
    low, span = math.log(limits[0]), math.log(limits[1] / limits[0])
    if abs(tilt * span) < 1e-6:
        logarithm = low + share * span
    else:
        logarithm = low + math.log1p(share * math.expm1(tilt * span)) / tilt
    return min(max(math.exp(logarithm), limits[0]), limits[1])


def fitted_tilt(spec: ShapesData) -> float:
    """The tilt of the size law at which boxes cover `spec.foreground_share` of the pixels.

    Measured on probe scenes that belong to no split. Where `object_size` and `objects` cannot reach
    the target, the nearest tilt is returned; `focus-lab data check` prints the share that the
    scenes really have.
    """
    if spec.foreground_share is None or spec.object_size[0] == spec.object_size[1]:
        return 0.0
    return _bisected_tilt(spec, spec.foreground_share)


@lru_cache(maxsize=32)
def _bisected_tilt(spec: ShapesData, target: float) -> float:
    low, high = -_MAX_TILT, _MAX_TILT
    for _ in range(11):
        middle = (low + high) / 2
        if _probed_share(spec, middle) < target:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 3)


def _probed_share(spec: ShapesData, tilt: float) -> float:
    height, width = spec.image_size
    low, high = spec.objects
    total = 0
    for probe in range(_PROBES):
        # Every number of objects equally often: most of the variance between scenes is in this
        # number.
        count = low + probe * (high - low + 1) // _PROBES
        covered = np.zeros((height, width), dtype=np.bool_)
        for figure in _objects(spec, generator(Stream.PROBE, probe, 0, spec.seed), tilt, count):
            left, top, right, bottom = (round(edge) for edge in figure.box_xyxy)
            covered[top:bottom, left:right] = True
        total += int(np.count_nonzero(covered))
    return total / (_PROBES * height * width)


def _add(
    figures: list[Figure],
    others: list[Figure],
    outline: Outline,
    label: int | None,
    side: float,
    spec: ShapesData,
    rng: np.random.Generator,
) -> None:
    """Append a figure where it overlaps the rest little enough; shrink it to find a place."""
    turn = MAX_TURN if label is not None else math.pi
    angle = rng.uniform(-turn, turn)
    squeeze = rng.uniform(0.88, 1.0)
    taken = [figure.box_xyxy for figure in (*figures, *others)]
    while side >= spec.object_size[0]:
        placed = outline.placed(angle, squeeze, side)
        width, height = (math.ceil(extent * _GRAIN) / _GRAIN for extent in placed.extent)
        # Rounding up may carry a figure as large as the image over its edge.
        width, height = (
            min(width, float(spec.image_size[1])),
            min(height, float(spec.image_size[0])),
        )
        free_x, free_y = int(spec.image_size[1] - width), int(spec.image_size[0] - height)
        for _ in range(_TRIES):
            left, top = int(rng.random() * (free_x + 1)), int(rng.random() * (free_y + 1))
            box = (left, top, left + width, top + height)
            if all(_overlap(box, other) < MAX_OVERLAP for other in taken):
                figures.append(Figure(placed, label, left, top, width, height))
                return
        side *= _SHRINK


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection as a share of the smaller box."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller
