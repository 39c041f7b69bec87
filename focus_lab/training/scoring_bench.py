"""How fast AP is computed: the faster evaluator against pycocotools, on the same detections."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from focus_lab.errors import FocusLabError, UserError
from focus_lab.ops.clock import device_name
from focus_lab.training.reporter import Metrics
from focus_lab.training.scoring import Evaluator, Found, check_evaluator, coco_metrics

_OURS: Evaluator = "faster-coco-eval"
_REFERENCE: Evaluator = "pycocotools"
_TOLERANCE = 1e-12
_SIDES = (480, 640)
_CLASSES_AN_IMAGE = 3
_OBJECTS_AN_IMAGE = 7.3
"""As in COCO 2017."""


def bench_evaluate(
    images: int = 5000,
    detections: int = 300,
    classes: int = 80,
    rounds: int = 1,
    on_round: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time both evaluators in turn, from arrays of detections to metrics, and compare the numbers.

    Args:
        images: of the made-up data set.
        detections: an image.
        classes: of the data set.
        rounds: how often each is timed.
        on_round: told what is being run.

    Returns:
        The content of `bench evaluate --json`; rows have `largest_difference` of any metric too.

    Raises:
        UserError: an argument is below 1, or the faster evaluator is not installed.
        FocusLabError: the two disagree.
    """
    for name, number in (
        ("images", images), ("detections", detections), ("classes", classes), ("rounds", rounds),
    ):  # fmt: skip
        if number < 1:
            raise UserError(f"--{name}: must be at least 1, got {number}")
    versions = {name: check_evaluator(name) for name in (_OURS, _REFERENCE)}
    truth, found = made_up(images, detections, classes)
    seconds: dict[Evaluator, list[float]] = {_OURS: [], _REFERENCE: []}
    metrics: dict[Evaluator, Metrics] = {}
    for number in range(rounds):
        for evaluator, times in seconds.items():
            on_round(f"round {number + 1} of {rounds}: {evaluator}")
            start = time.perf_counter()
            metrics[evaluator] = coco_metrics(truth, found, evaluator)
            times.append(time.perf_counter() - start)
    difference = largest_difference(metrics[_OURS], metrics[_REFERENCE])
    if difference > _TOLERANCE:
        raise FocusLabError(
            f"bench evaluate: {_OURS} and {_REFERENCE} disagree, got a difference of "
            f"{difference:.2g}; set compute.evaluator to {_REFERENCE} and report it"
        )
    ours, theirs = (1000 * statistics.median(seconds[name]) for name in (_OURS, _REFERENCE))
    return {
        "bench": "evaluate",
        "device": device_name(torch.device("cpu")),
        "threads": 1,
        "versions": versions,
        "rows": [
            {
                "case": f"{images} images x {detections} detections, {classes} classes",
                "dtype": "float64",
                "direction": "evaluate",
                "against": _REFERENCE,
                "ours_ms": ours,
                "against_ms": theirs,
                "ratio": theirs / ours,
                "largest_difference": difference,
                "AP": metrics[_REFERENCE]["coco/AP"],
            }
        ],
    }


def largest_difference(ours: Metrics, theirs: Metrics) -> float:
    """Of any metric; infinite when they are not the same metrics."""
    if ours.keys() != theirs.keys():
        return math.inf
    return max(abs(ours[name] - theirs[name]) for name in ours)


def made_up(
    images: int, detections: int, classes: int, seed: int = 0
) -> tuple[dict[str, Any], Found]:
    """A data set like COCO in counts and sizes, and what a fair detector might find in it.

    Half of the detections are true boxes, moved; the others lie anywhere. Most have a class of
    their image. One box in a hundred is a crowd.

    Returns:
        COCO instances and detections.
    """
    rng = np.random.default_rng(seed)
    frequency = rng.dirichlet(np.full(classes, 0.5))
    present = rng.choice(classes, (images, _CLASSES_AN_IMAGE), p=frequency)
    counts = rng.poisson(_OBJECTS_AN_IMAGE, images)
    owner = np.repeat(np.arange(images), counts)
    boxes = _boxes(rng, len(owner))
    labels = present[owner, rng.integers(0, _CLASSES_AN_IMAGE, len(owner))]
    crowd = rng.random(len(owner)) < 0.01
    truth = {
        "info": {},
        "images": [
            {"id": image + 1, "height": _SIDES[0], "width": _SIDES[1]} for image in range(images)
        ],
        "categories": [{"id": label + 1, "name": f"class {label}"} for label in range(classes)],
        "annotations": [
            {
                "id": number + 1,
                "image_id": image + 1,
                "category_id": label + 1,
                "bbox": box,
                "area": 0.7 * box[2] * box[3],
                "iscrowd": int(group),
            }
            for number, (image, label, box, group) in enumerate(
                zip(owner.tolist(), labels.tolist(), boxes.tolist(), crowd.tolist(), strict=True)
            )
        ],
    }
    starts = np.cumsum(counts) - counts
    parts = []
    for image in range(images):
        near = (rng.random(detections) < 0.5) & (counts[image] > 0)
        found = _boxes(rng, detections)
        own = present[image, rng.integers(0, _CLASSES_AN_IMAGE, detections)]
        any_label = rng.choice(classes, detections, p=frequency)
        found_labels = np.where(rng.random(detections) < 0.7, own, any_label)
        if counts[image]:
            repeated = starts[image] + rng.integers(0, counts[image], detections)
            moves = rng.normal(0, 1, (detections, 4)) * rng.exponential(0.1, (detections, 1))
            moved = boxes[repeated] + moves * np.tile(boxes[repeated, 2:], 2)
            moved[:, 2:] = moved[:, 2:].clip(min=1)
            found = np.where(near[:, None], moved, found)
            right = near & (rng.random(detections) < 0.8)
            found_labels = np.where(right, labels[repeated], found_labels)
        scores = rng.beta(1, 8, detections) + 0.2 * near
        order = np.argsort(-scores)
        parts.append(
            Found(
                np.full(detections, image + 1),
                found_labels[order] + 1,
                # Rounded as a model's.
                found[order].astype(np.float32).astype(np.float64),
                scores[order].astype(np.float32).astype(np.float64),
            )
        )
    return truth, Found.joined(parts)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int, int], np.dtype[Any]]:
    """[count, 4] x, y, w, h anywhere inside an image; sides log-uniform."""
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    corners = rng.random((count, 2)) * (np.array(_SIDES[::-1]) - sides)
    return np.concatenate([corners, sides], axis=1)
