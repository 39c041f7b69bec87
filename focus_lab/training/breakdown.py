"""What lies behind AP: precision by recall, and which class was taken for which.

A small file a trial, written once, from the last epoch's detections; the report draws it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask

from focus_lab.training.scoring import Found, Scores
from focus_lab.training.whole_file import whole_file

FILE = "breakdown.json"
CONFUSION_IOU = 0.5
CONFUSION_SCORE = 0.3
MAX_CLASSES = 100
"""Classes with a curve of their own; with more of them only the mean has one."""
MAX_COUNTS = 10_000
"""Pairs of classes, the most frequent ones; with these limits the file stays below 512 KiB."""

_CURVES = {"0.50": 0, "0.75": 5}
"""IoU thresholds among pycocotools' ten."""


def write_breakdown(truth: dict[str, Any], found: Found, scores: Scores, folder: Path) -> Path:
    """Write `breakdown.json` into `folder`, whole or not at all.

    Args:
        truth: COCO instances.
        found: all detections.
        scores: of these detections.
        folder: made if missing.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    content = _curves(truth, scores) | {"confusion": _confusion(truth, found)}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, separators=(",", ":")))
    return path


def _curves(truth: dict[str, Any], scores: Scores) -> dict[str, Any]:
    """Precision at 101 recalls from 0 to 1: mean over the classes with a box, and by class."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    measured = (scores.precision > -1).any(axis=(0, 1))  # [K]
    content: dict[str, Any] = {"precision": {}, "precision_by_class": {}}
    if not measured.any():
        return content
    for iou, place in _CURVES.items():
        mean = scores.precision[place][:, measured].mean(axis=1)  # [R]
        content["precision"][iou] = mean.round(3).tolist()
    if measured.sum() <= MAX_CLASSES:
        for index in np.flatnonzero(measured):
            curve = scores.precision[_CURVES["0.50"], :, index]
            name = names[int(scores.category_ids[index])]
            content["precision_by_class"][name] = curve.round(3).tolist()
    return content


def _confusion(truth: dict[str, Any], found: Found) -> dict[str, Any]:
    """Pairs (true class, detected class) and how often, whatever the class.

    Boxes are paired by falling IoU, each once. What is left over counts as (class, none) or
    (none, class), with the number of classes for `none`; what lies in a crowd counts as nothing.
    """
    ids = [category["id"] for category in truth["categories"]]
    rows = {category_id: row for row, category_id in enumerate(ids)}
    none = len(ids)
    boxes_of: dict[int, list[dict[str, Any]]] = {}
    for box in truth["annotations"]:
        boxes_of.setdefault(box["image_id"], []).append(box)
    detected: dict[int, list[int]] = {}
    for place in np.flatnonzero(found.scores >= CONFUSION_SCORE).tolist():
        detected.setdefault(int(found.image_ids[place]), []).append(place)
    counts: Counter[tuple[int, int]] = Counter()
    for image_id in {**dict.fromkeys(boxes_of), **dict.fromkeys(detected)}:
        theirs = boxes_of.get(image_id, [])
        places = detected.get(image_id, [])
        labels = [rows[category_id] for category_id in found.category_ids[places].tolist()]
        true_labels = [rows[box["category_id"]] for box in theirs]
        crowd = [int(box.get("iscrowd", 0)) for box in theirs]
        overlap = _overlap(found.boxes_xywh[places], theirs, crowd)  # [D, G]
        pairs = _paired(overlap, crowd)
        counts.update((true_labels[g], labels[d]) for d, g in pairs)
        paired_d, paired_g = {d for d, _ in pairs}, {g for _, g in pairs}
        crowds = np.array(crowd, dtype=np.bool_)
        in_crowd = np.any((overlap >= CONFUSION_IOU) & crowds, axis=1)  # [D]
        counts.update(
            (none, label) for d, label in enumerate(labels) if d not in paired_d and not in_crowd[d]
        )
        counts.update(
            (label, none)
            for g, label in enumerate(true_labels)
            if g not in paired_g and not crowd[g]
        )
    kept = counts.most_common(MAX_COUNTS)
    return {
        "iou": CONFUSION_IOU,
        "score": CONFUSION_SCORE,
        "class_names": [category["name"] for category in truth["categories"]],
        "counts": sorted([true, label, count] for (true, label), count in kept),
        "left_out": len(counts) - len(kept),
    }


def _overlap(
    boxes: npt.NDArray[np.float64], theirs: Sequence[dict[str, Any]], crowd: Sequence[int]
) -> npt.NDArray[np.float64]:
    """IoU as pycocotools has it, of a crowd by the detection's area alone: [D, G]."""
    if not len(boxes) or not theirs:
        return np.zeros((len(boxes), len(theirs)))
    true_boxes = np.array([box["bbox"] for box in theirs], dtype=np.float64)
    overlap: npt.NDArray[np.float64] = mask.iou(np.ascontiguousarray(boxes), true_boxes, crowd)
    return overlap


def _paired(overlap: npt.NDArray[np.float64], crowd: Sequence[int]) -> list[tuple[int, int]]:
    """(detection, box) by falling IoU, each once, without crowds."""
    candidates = [
        (-overlap[d, g], int(d), int(g))
        for d, g in zip(*np.nonzero(overlap >= CONFUSION_IOU), strict=True)
        if not crowd[g]
    ]
    pairs: list[tuple[int, int]] = []
    used_d: set[int] = set()
    used_g: set[int] = set()
    for _, d, g in sorted(candidates):
        if d not in used_d and g not in used_g:
            pairs.append((d, g))
            used_d.add(d)
            used_g.add(g)
    return pairs
