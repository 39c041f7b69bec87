from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focus_lab.data.coco import CocoDataset
from focus_lab.data.dataset import build_dataset, build_datasets
from focus_lab.errors import DataError


@pytest.fixture
def folder(write_folder, make_image, make_annotation):
    """Four images: two boxes; crowd and a box; crowd only; nothing."""
    return write_folder(
        [make_image(number) for number in (11, 3, 8, 5)],
        [
            make_annotation(0, 3, box=(0, 0, 40, 30), iscrowd=1),
            make_annotation(1, 11, 7),
            make_annotation(2, 11, 2, box=(20.5, 1.25, 7.25, 9)),
            make_annotation(3, 3, 90, area=12.5),
            make_annotation(4, 8, iscrowd=1),
        ],
    )


def test_training_leaves_out_images_without_boxes_and_says_so(folder):
    train = build_dataset(folder, "train")
    assert [train.load(i).image_id for i in range(len(train))] == [11, 3]
    assert train.repairs == {"images without a usable box, left out of training": 2}


def test_training_keeps_images_without_boxes_on_request(folder):
    train = build_dataset(folder.model_copy(update={"keep_empty": True}), "train")
    assert len(train) == 4
    assert train.load(3).boxes_xyxy.shape == (0, 4)
    assert train.load(3).labels.shape == (0,)


def test_validation_keeps_every_image(folder):
    assert len(build_dataset(folder, "val")) == 4


def test_a_sample_has_corners_contiguous_labels_and_no_crowd(folder):
    val = build_dataset(folder, "val")
    sample = val.load(0)
    assert sample.boxes_xyxy.tolist() == [[4, 5, 14, 13], [20.5, 1.25, 27.75, 10.25]]
    assert [val.class_names[label] for label in sample.labels] == ["fish", "crab"]
    assert sample.original_size == sample.size == (30, 40)
    assert val.load(1).labels.tolist() == [2]


def test_ground_truth_keeps_ids_crowd_and_areas(folder):
    truth = build_dataset(folder, "val").coco_ground_truth()
    assert [image["id"] for image in truth["images"]] == [11, 3, 8, 5]
    rows = [(row["image_id"], row["category_id"], row["iscrowd"]) for row in truth["annotations"]]
    assert rows == [(11, 7, 0), (11, 2, 0), (3, 7, 1), (3, 90, 0), (8, 7, 1)]
    assert truth["annotations"][3]["area"] == 12.5
    assert {(entry["id"], entry["name"]) for entry in truth["categories"]} == {
        (7, "fish"),
        (2, "crab"),
        (90, "snail"),
    }


def test_annotation_ids_start_at_one_because_pycocotools_ignores_matches_with_id_zero(folder):
    truth = build_dataset(folder, "val").coco_ground_truth()
    assert [row["id"] for row in truth["annotations"]] == [1, 2, 3, 4, 5]


def test_the_truth_as_detections_reaches_ap_one(folder):
    truth = build_dataset(folder, "val").coco_ground_truth()
    found = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for row in truth["annotations"]
        if not row["iscrowd"]
    ]
    with redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_missing_files_are_counted_and_named_before_training(folder):
    for name in ("3.png", "5.png"):
        (Path(folder.root) / "images" / name).unlink()
    with pytest.raises(DataError, match=r"missing, got 2 of 4, first \['3.png', '5.png'\]"):
        build_dataset(folder, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": "/nowhere/at/all"}, "data.root: no such folder, got '/nowhere/at/all'"),
        (
            {"val": {"images": "absent", "annotations": "instances.json"}},
            "data.val.images: no such",
        ),
        ({"val": {"images": "images", "annotations": "absent.json"}}, "annotation file not found"),
    ],
)
def test_missing_folders_are_errors(folder, change, message):
    spec = type(folder)(**{**folder.model_dump(), **change})
    with pytest.raises(DataError, match=message):
        build_dataset(spec, "val")


def test_a_split_without_any_box_cannot_train(write_folder, make_image):
    spec = write_folder([make_image(1)], [])
    with pytest.raises(DataError, match="no usable image, got 1 in the file"):
        build_dataset(spec, "train")


def test_an_unreadable_image_is_an_error_when_it_is_loaded(folder):
    (Path(folder.root) / "images" / "11.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"11\.png: is not a readable image"):
        build_dataset(folder, "val").load(0)


def test_missing_sizes_are_read_from_the_files(write_folder, make_annotation):
    spec = write_folder([{"id": 1, "file_name": "1.png"}], [make_annotation(1, 1)])
    assert build_dataset(spec, "val").sizes == ((30, 40),)


def test_the_digest_follows_annotations_and_files(folder):
    digest = build_dataset(folder, "val").digest
    assert digest == CocoDataset(folder, "val").digest
    path = Path(folder.root) / "images" / "5.png"
    path.write_bytes(path.read_bytes() + b"\0")
    longer_file = build_dataset(folder, "val").digest
    path = Path(folder.root) / "instances.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert len({digest, longer_file, build_dataset(folder, "val").digest}) == 3


def test_splits_with_other_classes_are_an_error(folder):
    content = json.loads((Path(folder.root) / "instances.json").read_text())
    content["categories"][0]["name"] = "whale"
    (Path(folder.root) / "other.json").write_text(json.dumps(content))
    spec = type(folder)(
        **{**folder.model_dump(), "val": {"images": "images", "annotations": "other.json"}}
    )
    with pytest.raises(DataError, match=r"data\.val: its categories differ .*whale"):
        build_datasets(spec)
    assert [len(split) for split in build_datasets(folder)] == [2, 4]


def test_pixels_are_those_of_the_file(folder):
    from PIL import Image

    with Image.open(Path(folder.root) / "images" / "11.png") as image:
        expected = np.asarray(image)
    found = build_dataset(folder, "val").load(0).image.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, expected)
