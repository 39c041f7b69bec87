"""The sample pictures of trials, read tolerantly: a broken file costs a picture, not the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "samples.json"


@dataclass(frozen=True)
class Boxes:
    """Boxes in pixels of the original image."""

    xyxy: NDArray[np.float64]
    """[n, 4]."""
    labels: list[int]
    scores: list[float] | None = None
    """None for ground truth."""


@dataclass(frozen=True)
class SampleImage:
    """One validation image as one trial sees it."""

    image_id: str
    path: Path
    original_size: tuple[int, int]
    """(height, width) of the file."""
    input_size: tuple[int, int]
    """(height, width) at which the model saw it, without padding."""
    truth: Boxes
    detections: Boxes
    depth_by_level: tuple[NDArray[np.int64], ...]
    """How many encoder layers refined each token: [h, w] a level, finest first."""
    strides: tuple[int, ...]
    """Pixels of the input a token, by level."""
    num_layers: int
    """Encoder layers: the largest depth."""
    kept_by_layer: tuple[int, ...] | None = None
    """How many tokens each layer refined; None in older files, whose cascades are taken to fall."""

    @property
    def kept_share(self) -> float:
        """Share of the tokens that at least one layer refined."""
        kept = sum(int((depth > 0).sum()) for depth in self.depth_by_level)
        return kept / max(1, sum(depth.size for depth in self.depth_by_level))

    def refined_by(self, layer: int) -> tuple[NDArray[np.bool_], ...]:
        """Which tokens an encoder layer refined, 0 the first: [h, w] a level.

        Layers take prefixes of one ranking, so all that take more have every token of this one.
        """
        kept = self.kept_by_layer
        larger = layer if kept is None else sum(count > kept[layer] for count in kept)
        return tuple(depth > larger for depth in self.depth_by_level)


@dataclass(frozen=True)
class Samples:
    """The sample images of one trial."""

    class_names: tuple[str, ...]
    images: dict[str, SampleImage]
    """Image id -> image, in the order of the file."""


def read_samples(folder: Path) -> Samples | None:
    """Samples of a trial; None when they are missing or cannot be understood."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        names = tuple(str(name) for name in content["class_names"])
        layers = int(content["num_encoder_layers"])
        images = [_image(folder, entry, layers) for entry in content["images"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Samples(names, {image.image_id: image for image in images if image.path.is_file()})


def _image(folder: Path, entry: dict[str, Any], layers: int) -> SampleImage:
    shapes = [(int(height), int(width)) for height, width in entry["level_shapes"]]
    depth = np.asarray(entry["kept_depth"], dtype=np.int64)  # [N]
    ends = np.cumsum([height * width for height, width in shapes])
    if len(depth) != ends[-1]:
        raise ValueError("kept_depth and level_shapes disagree")
    levels = np.split(depth, ends[:-1])
    kept = (
        tuple(int(count) for count in entry["kept_by_layer"]) if "kept_by_layer" in entry else None
    )
    if kept is not None and len(kept) != layers:
        raise ValueError("kept_by_layer and num_encoder_layers disagree")
    height, width = entry["original_size"]
    input_height, input_width = entry["input_size"]
    return SampleImage(
        image_id=str(entry["image_id"]),
        # The name only: a sample lies beside its description.
        path=folder / Path(str(entry["file"])).name,
        original_size=(int(height), int(width)),
        input_size=(int(input_height), int(input_width)),
        truth=_boxes(entry["truth"]),
        detections=_boxes(entry["detections"]),
        depth_by_level=tuple(
            level.reshape(shape) for level, shape in zip(levels, shapes, strict=True)
        ),
        strides=tuple(int(stride) for stride in entry["strides"]),
        num_layers=max(1, layers),
        kept_by_layer=kept,
    )


def _boxes(entry: dict[str, Any]) -> Boxes:
    xyxy = np.asarray(entry["boxes_xyxy"], dtype=np.float64).reshape(-1, 4)
    labels = [int(label) for label in entry["labels"]]
    scores = [float(score) for score in entry["scores"]] if "scores" in entry else None
    if len(labels) != len(xyxy) or (scores is not None and len(scores) != len(xyxy)):
        raise ValueError("boxes, labels and scores disagree")
    return Boxes(xyxy, labels, scores)
