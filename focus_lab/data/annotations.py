"""Reads a COCO instances file into compact arrays; mends what can be mended, and counts it.

Not mended: whatever would make boxes belong to another image or class. Those are errors with the
place in the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focus_lab.errors import DataError

_SHOWN = 3
"""How many offenders an error names."""


@dataclass(frozen=True)
class Annotations:
    """Images in file order, and their usable boxes. n images, m boxes."""

    image_ids: NDArray[np.int64]
    """[n]"""
    file_names: tuple[str, ...]
    """[n], relative to the image folder."""
    sizes: NDArray[np.int64]
    """[n, 2], (height, width) in pixels."""
    category_ids: tuple[int, ...]
    """Contiguous label -> id in the file; rising."""
    class_names: tuple[str, ...]
    """Contiguous label -> name; no name twice."""
    starts: NDArray[np.int64]
    """[n + 1]: the boxes of image i are starts[i] .. starts[i + 1] - 1."""
    boxes_xywh: NDArray[np.float64]
    """[m, 4], left, top, width, height in pixels, inside the image."""
    labels: NDArray[np.int64]
    """[m]"""
    areas: NDArray[np.float64]
    """[m], square pixels of the mask, or of the box where the file gives none."""
    crowd: NDArray[np.bool_]
    """[m], regions of many objects."""
    repairs: dict[str, int]
    """What was mended -> how often; only what occurred."""
    digest: str
    """SHA-256 (hex) of the file's bytes."""


def read_annotations(path: Path, size_of: Callable[[str], tuple[int, int]]) -> Annotations:
    """Read and check a COCO instances file.

    Args:
        path: the JSON file.
        size_of: (height, width) of an image file by its name, asked only where the file gives no
            size.

    Raises:
        DataError: if the file is missing, is no JSON, lacks keys, repeats ids of images or
            categories, names files outside the image folder, or annotates unknown images or
            categories.
    """
    content, digest = _parsed(path)
    repairs: Counter[str] = Counter()
    category_ids, class_names = _categories(path, content["categories"], repairs)
    image_ids, file_names, sizes = _images(path, content["images"], size_of, repairs)
    rows = _rows(path, content["annotations"], image_ids, category_ids, repairs)
    boxes, areas, kept = _mended(rows, sizes, repairs)
    order = kept[np.argsort(rows.images[kept], kind="stable")]
    counts = np.bincount(rows.images[order], minlength=len(image_ids))
    return Annotations(
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=file_names,
        sizes=sizes,
        category_ids=category_ids,
        class_names=class_names,
        starts=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes_xywh=boxes[order],
        labels=rows.labels[order],
        areas=areas[order],
        crowd=rows.crowd[order],
        repairs=dict(sorted((+repairs).items())),
        digest=digest,
    )


def _parsed(path: Path) -> tuple[dict[str, list[dict[str, Any]]], str]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path}: annotation file not found; "
            "set data.root, data.train.annotations and data.val.annotations"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read, got {error.strerror}; name a readable JSON file"
        ) from error
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: is not valid JSON, got {error.msg}; "
            "mend it or export it again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not valid JSON, got {error}; export it again as UTF-8"
        ) from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: must hold a JSON object, got {type(content).__name__}; "
            "use COCO's instances format"
        )
    for key in ("images", "annotations", "categories"):
        found = content.get(key)
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            got = "nothing" if key not in content else type(found).__name__
            raise DataError(
                f"{path}: {key}: must be a list of objects, got {got}; use COCO's instances format"
            )
    return content, hashlib.sha256(raw).hexdigest()


def _value(path: Path, place: str, entry: dict[str, Any], key: str, kind: type) -> Any:
    """entry[key], checked to be of a JSON kind (bool is no int)."""
    value = entry.get(key)
    fits = isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)
    if isinstance(value, kind) and not isinstance(value, bool) and fits:
        return value
    got = "nothing" if key not in entry else repr(value)
    wanted = {int: "a whole number of 64 bits", str: "a text"}[kind]
    raise DataError(
        f"{path}: {place}.{key}: must be {wanted}, got {got}; use COCO's instances format"
    )


def _no_repeats(path: Path, place: str, ids: list[int]) -> None:
    repeated = [number for number, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: {place}: ids must differ, got {len(repeated)} ids more than once, "
            f"first {repeated[:_SHOWN]}; give each entry its own id"
        )


def _categories(
    path: Path, entries: list[dict[str, Any]], repairs: Counter[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not entries:
        raise DataError(f"{path}: categories: must not be empty; list the classes as {{id, name}}")
    ids = [_value(path, f"categories[{i}]", entry, "id", int) for i, entry in enumerate(entries)]
    names = [
        _value(path, f"categories[{i}]", entry, "name", str) for i, entry in enumerate(entries)
    ]
    _no_repeats(path, "categories", ids)
    occurrences = Counter(names)
    unique = []
    for number, name in sorted(zip(ids, names, strict=True)):
        # Metrics are named by class: two of one name would overwrite each other.
        unique.append(name if occurrences[name] == 1 else f"{name} ({number})")
        repairs["class names given twice, made distinct by their id"] += occurrences[name] > 1
    return tuple(sorted(ids)), tuple(unique)


def _images(
    path: Path,
    entries: list[dict[str, Any]],
    size_of: Callable[[str], tuple[int, int]],
    repairs: Counter[str],
) -> tuple[list[int], tuple[str, ...], NDArray[np.int64]]:
    ids: list[int] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for i, entry in enumerate(entries):
        place = f"images[{i}]"
        ids.append(_value(path, place, entry, "id", int))
        names.append(_value(path, place, entry, "file_name", str))
        inside = PurePath(names[-1])
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(
                f"{path}: {place}.file_name: must lie inside the image folder, "
                f"got {names[-1]!r}; write it relative to that folder, without `..`"
            )
        if entry.get("width") is None or entry.get("height") is None:
            sizes.append(size_of(names[-1]))
            repairs["image sizes missing, read from the files"] += 1
            continue
        height, width = (_value(path, place, entry, key, int) for key in ("height", "width"))
        if height < 1 or width < 1:
            raise DataError(
                f"{path}: {place}: must have a size, got {width} x {height} pixels; "
                "correct the file"
            )
        sizes.append((height, width))
    _no_repeats(path, "images", ids)
    return ids, tuple(names), np.array(sizes, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class _Rows:
    """All annotations as they stand in the file; an area is NaN where it is missing."""

    images: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]


def _rows(
    path: Path,
    entries: list[dict[str, Any]],
    image_ids: list[int],
    category_ids: tuple[int, ...],
    repairs: Counter[str],
) -> _Rows:
    image_of = {number: index for index, number in enumerate(image_ids)}
    label_of = {number: label for label, number in enumerate(category_ids)}
    first_of: dict[int, int] = {}
    unknown: dict[str, list[int]] = {"image_id": [], "category_id": []}
    rows: list[tuple[int, list[float], int, float, bool]] = []
    for i, entry in enumerate(entries):
        place = f"annotations[{i}]"
        image_id = _value(path, place, entry, "image_id", int)
        category_id = _value(path, place, entry, "category_id", int)
        box = _box(path, place, entry)
        if image_id not in image_of or category_id not in label_of:
            key = "category_id" if image_id in image_of else "image_id"
            unknown[key].append(entry[key])
            continue
        # Evaluation gets new ids, so two annotations of one id do no harm; a copy does.
        number = entry.get("id")
        first = first_of.setdefault(number, i) if isinstance(number, int) else i
        if first != i and entry == entries[first]:
            repairs["annotations given twice, copy dropped"] += 1
            continue
        area = _number(entry.get("area"))
        rows.append(
            (
                image_of[image_id],
                box,
                label_of[category_id],
                np.nan if area is None else area,
                entry.get("iscrowd") in (1, True),
            )
        )
    for key, numbers in unknown.items():
        if numbers:
            listed = "images" if key == "image_id" else "categories"
            raise DataError(
                f"{path}: annotations: {key} must be listed under {listed}, "
                f"got {len(numbers)} that are not, first {numbers[:_SHOWN]}; "
                "add the entries or remove the annotations"
            )
    return _Rows(
        images=np.array([row[0] for row in rows], dtype=np.int64),
        boxes=np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row[2] for row in rows], dtype=np.int64),
        areas=np.array([row[3] for row in rows], dtype=np.float64),
        crowd=np.array([row[4] for row in rows], dtype=np.bool_),
    )


def _number(value: Any) -> float | None:
    """A JSON number as float, maybe infinite or NaN; `None` for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _box(path: Path, place: str, entry: dict[str, Any]) -> list[float]:
    box = entry.get("bbox")
    numbers = [_number(value) for value in box] if isinstance(box, list) else []
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) == 4:
        return known
    got = "nothing" if "bbox" not in entry else repr(box)
    raise DataError(
        f"{path}: {place}.bbox: must be [left, top, width, height] in pixels, got {got}; "
        "computing it from a segmentation is left to the exporter"
    )


def _mended(
    rows: _Rows, sizes: NDArray[np.int64], repairs: Counter[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Boxes clipped to their image, areas, and the indices of the usable rows."""
    boxes = rows.boxes.copy()
    finite = np.isfinite(boxes).all(axis=1)
    boxes[~finite] = 0.0
    extended = (boxes[:, 2:] > 0).all(axis=1)
    limits = sizes[rows.images][:, ::-1].astype(np.float64)  # [m, 2], (width, height)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sticks_out = ((low < 0) | (high > limits)).any(axis=1)
    low, high = np.clip(low, 0, limits), np.clip(high, 0, limits)
    inside = (high > low).all(axis=1)
    kept = finite & extended & inside
    # Boxes that lie inside keep the file's very numbers, so that AP is that of the file.
    boxes[sticks_out] = np.concatenate((low, high - low), axis=1)[sticks_out]
    known = np.isfinite(rows.areas) & (rows.areas > 0)
    areas = np.where(known, rows.areas, boxes[:, 2] * boxes[:, 3])
    repairs["boxes with a number that is not finite, dropped"] += int((~finite).sum())
    repairs["boxes without extent, dropped"] += int((finite & ~extended).sum())
    repairs["boxes outside their image, dropped"] += int((finite & extended & ~inside).sum())
    repairs["boxes partly outside their image, clipped"] += int((kept & sticks_out).sum())
    repairs["areas missing, computed from the box"] += int((kept & ~known).sum())
    return boxes, areas, np.flatnonzero(kept)
