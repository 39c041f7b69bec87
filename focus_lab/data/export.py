"""Writes a data set as a COCO folder: instances JSON and PNG images."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from focus_lab.data.dataset import DetectionDataset, build_dataset
from focus_lab.errors import OutputError
from focus_lab.specs.data import CocoData, CocoSplit, ShapesData


def write_coco(dataset: DetectionDataset, folder: Path, name: str) -> CocoSplit:
    """Write one split to folder/name/*.png and folder/annotations/instances_name.json.

    The JSON is written last: a folder that has it is complete.

    Args:
        dataset: the images.
        folder: root of the data set; made when missing.
        name: of the split, for example train.

    Returns:
        The split, to be named in a `coco` spec with the folder as its root.

    Raises:
        OutputError: if the folder already holds this split or cannot be written.
    """
    split = CocoSplit(images=name, annotations=f"annotations/instances_{name}.json")
    annotations = folder / split.annotations
    if annotations.exists():
        raise OutputError(
            f"{folder}: already holds the split {name!r}; choose another folder with --out DIR"
        )
    truth = dataset.coco_ground_truth()
    for image in truth["images"]:
        image["file_name"] = Path(image["file_name"]).with_suffix(".png").name
    try:
        (folder / split.images).mkdir(parents=True, exist_ok=True)
        annotations.parent.mkdir(exist_ok=True)
        for index, image in enumerate(truth["images"]):
            pixels = dataset.load(index).image.permute(1, 2, 0).contiguous().numpy()
            # Fast compression: the files are read far more often than they are sent.
            Image.fromarray(pixels).save(
                folder / split.images / image["file_name"], compress_level=1
            )
        annotations.write_text(json.dumps(truth), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written, got {error.strerror}; "
            "choose another folder with --out DIR"
        ) from error
    return split


def write_shapes(spec: ShapesData, folder: Path) -> CocoData:
    """Write both splits of procedural scenes; the returned spec reads them back.

    Raises:
        OutputError: if the folder already holds them or cannot be written.
    """
    return CocoData(
        kind="coco",
        root=str(folder),
        train=write_coco(build_dataset(spec, "train"), folder, "train"),
        val=write_coco(build_dataset(spec, "val"), folder, "val"),
        normalisation=spec.normalisation,
        augmentation=spec.augmentation,
        evaluation=spec.evaluation,
        aspect_ratio_grouping=spec.aspect_ratio_grouping,
        keep_empty=True,
    )
