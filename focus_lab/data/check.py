"""Judges a data set: counts, sizes, foreground, what was mended, and files that cannot be read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from focus_lab.data.dataset import DetectionDataset, build_datasets
from focus_lab.data.foreground import STRIDES, covered_cells, foreground_share
from focus_lab.data.transforms import EvalTransform
from focus_lab.errors import DataError
from focus_lab.specs.data import DataSpec, ShapesData

_SMALL, _MEDIUM = 32**2, 96**2
"""COCO's limits between small, medium and large areas, in square pixels of the stored image."""
_SHOWN = 20


@dataclass(frozen=True)
class SplitReport:
    """What one split holds."""

    name: str
    """train or val."""
    images: int
    """Images used."""
    images_without_boxes: int
    """Of them, how many have no box besides crowd."""
    boxes: int
    """Objects, crowd not counted."""
    crowd: int
    """Crowd regions: not trained on, neither rewarded nor punished in evaluation."""
    sizes: dict[str, float]
    """small, medium, large -> share of the boxes, by area as AP of these names counts them."""
    longer_sides: tuple[float, float, float]
    """Longer side of a box in pixels at evaluation size: median, 90th percentile, largest; zeros
    where there is no box."""
    foreground_tokens: float
    """Mean share of feature tokens whose centre lies in any box, at evaluation size: the knee of an
    AP-against-keep-ratio curve lies near it."""
    foreground_pixels: float
    """Mean share of pixels in any box."""
    boxes_of_class: dict[str, int]
    """Class -> boxes; zero for classes that never occur."""
    repairs: dict[str, int]
    """What was mended -> how often."""
    decoded: bool
    """Whether every image file was decoded."""
    unreadable: int
    """Images that could not be decoded."""
    unreadable_first: tuple[str, ...]
    """Why, for the first of them."""
    digest: str
    """SHA-256 (hex) of the content."""


@dataclass(frozen=True)
class DataReport:
    """What a data set holds."""

    kind: str
    """shapes or coco."""
    classes: tuple[str, ...]
    """Names by label."""
    strides: tuple[int, ...]
    """Strides that foreground tokens were counted at."""
    wanted_foreground: float | None
    """Share of pixels that procedural scenes were asked to cover."""
    splits: tuple[SplitReport, ...]
    """train, val."""

    @property
    def usable(self) -> bool:
        """Whether no unreadable image was found; only decoding finds them."""
        return all(split.unreadable == 0 for split in self.splits)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    def as_text(self) -> str:
        """A table for people."""
        names = ["", *(split.name for split in self.splits)]
        rows = [names, *self._rows()]
        rows.append(["boxes of class:", *("" for _ in self.splits)])
        for name in self.classes:
            rows.append([f"  {name}", *(str(split.boxes_of_class[name]) for split in self.splits)])
        first = max(len(row[0]) for row in rows)
        other = max(len(cell) for row in rows for cell in row[1:]) + 2
        lines = [
            (row[0].ljust(first) + "".join(cell.rjust(other) for cell in row[1:])).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._notes()])

    def _rows(self) -> list[list[str]]:
        splits = self.splits
        decoded = [
            "not decoded" if not split.decoded else str(split.unreadable) for split in splits
        ]
        return [
            ["images", *(str(split.images) for split in splits)],
            ["images without boxes", *(str(split.images_without_boxes) for split in splits)],
            ["unreadable images", *decoded],
            ["boxes", *(str(split.boxes) for split in splits)],
            ["crowd regions", *(str(split.crowd) for split in splits)],
            *(
                [f"{size} boxes", *(f"{split.sizes[size]:.1%}" for split in splits)]
                for size in ("small", "medium", "large")
            ),
            ["longer side of a box", *(_sides(split.longer_sides) for split in splits)],
            ["foreground tokens", *(f"{split.foreground_tokens:.1%}" for split in splits)],
            ["foreground pixels", *(f"{split.foreground_pixels:.1%}" for split in splits)],
        ]

    def _notes(self) -> list[str]:
        notes = []
        if self.wanted_foreground is not None:
            notes.append(
                f"data.foreground_share asks for {self.wanted_foreground:.1%} of the pixels"
            )
        for split in self.splits:
            notes += [f"{split.name}: {what}: {count}" for what, count in split.repairs.items()]
            notes += [f"{split.name}: {why}" for why in split.unreadable_first]
        return notes


def check_dataset(spec: DataSpec, decode: bool = False) -> DataReport:
    """Read both splits and describe them.

    Args:
        spec: the data set.
        decode: whether every image is decoded, to find unreadable files; takes as long as an epoch
            of loading.

    Raises:
        DataError: if the data set cannot be used at all.
    """
    train, val = build_datasets(spec)
    resize = EvalTransform(spec.evaluation).size
    return DataReport(
        kind=spec.kind,
        classes=train.class_names,
        strides=STRIDES,
        wanted_foreground=spec.foreground_share if isinstance(spec, ShapesData) else None,
        splits=tuple(
            SplitReport(
                name=name,
                images=len(dataset),
                images_without_boxes=sum(len(dataset.labels(i)) == 0 for i in range(len(dataset))),
                **_boxes(dataset),
                longer_sides=_longer_sides(dataset, resize),
                foreground_tokens=foreground_share(dataset, STRIDES, resize),
                foreground_pixels=_pixel_share(dataset),
                repairs=dict(dataset.repairs),
                **_unreadable(dataset, decode),
                digest=dataset.digest,
            )
            for name, dataset in (("train", train), ("val", val))
        ),
    )


def _boxes(dataset: DetectionDataset) -> dict[str, Any]:
    annotations = dataset.coco_ground_truth()["annotations"]
    objects = [annotation for annotation in annotations if not annotation["iscrowd"]]
    areas = np.array([annotation["area"] for annotation in objects])
    counts = np.histogram(areas, bins=(0, _SMALL, _MEDIUM, np.inf))[0] / max(1, len(objects))
    of_category = Counter(annotation["category_id"] for annotation in objects)
    return {
        "boxes": len(objects),
        "crowd": len(annotations) - len(objects),
        "sizes": dict(zip(("small", "medium", "large"), counts.tolist(), strict=True)),
        "boxes_of_class": {
            name: of_category[category]
            for category, name in zip(dataset.category_ids, dataset.class_names, strict=True)
        },
    }


def _longer_sides(
    dataset: DetectionDataset, resize: Callable[[int, int], tuple[int, int]]
) -> tuple[float, float, float]:
    sides = [0.0]
    for index, (height, width) in enumerate(dataset.sizes):
        new_height, new_width = resize(height, width)
        left, top, right, bottom = dataset.boxes_xyxy(index).numpy().T
        longer = np.maximum(
            (right - left) * new_width / width, (bottom - top) * new_height / height
        )
        sides += longer.tolist()
    median, most, largest = np.quantile(sides[1:] or sides, (0.5, 0.9, 1.0)).tolist()
    return median, most, largest


def _sides(quantiles: tuple[float, float, float]) -> str:
    median, _, largest = quantiles
    return f"{median:.0f}, up to {largest:.0f} px"


def _pixel_share(dataset: DetectionDataset) -> float:
    shares = [
        covered_cells(dataset.boxes_xyxy(index).numpy(), height, width, 1).mean()
        for index, (height, width) in enumerate(dataset.sizes)
    ]
    return float(np.mean(shares)) if shares else 0.0


def _unreadable(dataset: DetectionDataset, decode: bool) -> dict[str, Any]:
    reasons = []
    for index in range(len(dataset) if decode else 0):
        try:
            dataset.load(index)
        except DataError as error:
            reasons.append(str(error))
    return {
        "decoded": decode,
        "unreadable": len(reasons),
        "unreadable_first": tuple(reasons[:_SHOWN]),
    }
