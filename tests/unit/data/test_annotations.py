from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_lab.data.annotations import read_annotations
from focus_lab.errors import DataError

CATEGORIES = [{"id": 90, "name": "snail"}, {"id": 2, "name": "crab"}]
IMAGES = [{"id": 5, "file_name": "a.png", "width": 40, "height": 30}]
BOX = {"id": 1, "image_id": 5, "category_id": 2, "bbox": [4, 5, 10, 8], "area": 33.5}


def read(folder: Path, images=None, annotations=None, categories=None):
    content = {
        "images": IMAGES if images is None else images,
        "annotations": [BOX] if annotations is None else annotations,
        "categories": CATEGORIES if categories is None else categories,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return read_annotations(path, lambda name: (30, 40))


def test_labels_are_contiguous_in_the_order_of_category_ids(tmp_path):
    found = read(tmp_path, annotations=[BOX, {**BOX, "id": 2, "category_id": 90}])
    assert found.category_ids == (2, 90)
    assert found.class_names == ("crab", "snail")
    assert found.labels.tolist() == [0, 1]


def test_a_clean_file_needs_no_repair_and_keeps_its_numbers(tmp_path):
    found = read(tmp_path)
    assert found.repairs == {}
    assert found.boxes_xywh.tolist() == [[4, 5, 10, 8]]
    assert found.areas.tolist() == [33.5]


def test_boxes_are_found_by_image_whatever_their_order_in_the_file(tmp_path):
    images = [{**IMAGES[0], "id": number} for number in (9, 5, 7)]
    rows = [{**BOX, "id": i, "image_id": image} for i, image in enumerate((7, 9, 7))]
    assert read(tmp_path, images=images, annotations=rows).starts.tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize(
    ("change", "repair", "left"),
    [
        ({"bbox": [4, 5, 0, 8]}, "boxes without extent, dropped", 0),
        ({"bbox": [4, 5, -3, 8]}, "boxes without extent, dropped", 0),
        ({"bbox": [4, float("nan"), 3, 8]}, "boxes with a number that is not finite, dropped", 0),
        ({"bbox": [4, 5, float("inf"), 8]}, "boxes with a number that is not finite, dropped", 0),
        ({"bbox": [4, 5, 10**400, 8]}, "boxes with a number that is not finite, dropped", 0),
        ({"bbox": [50, 5, 3, 8]}, "boxes outside their image, dropped", 0),
        ({"bbox": [40, 5, 3, 8]}, "boxes outside their image, dropped", 0),
        ({"bbox": [-4, 5, 10, 8]}, "boxes partly outside their image, clipped", 1),
        ({"area": None}, "areas missing, computed from the box", 1),
        ({"area": -1}, "areas missing, computed from the box", 1),
        ({"area": "big"}, "areas missing, computed from the box", 1),
    ],
)
def test_a_flawed_box_is_mended_or_dropped_and_counted(tmp_path, change, repair, left):
    found = read(tmp_path, annotations=[{**BOX, **change}])
    assert found.repairs == {repair: 1}
    assert len(found.labels) == left


def test_a_clipped_box_ends_at_the_edge(tmp_path):
    found = read(tmp_path, annotations=[{**BOX, "bbox": [-4, 25, 10, 80]}])
    assert found.boxes_xywh.tolist() == [[0, 25, 6, 5]]


def test_a_missing_area_is_that_of_the_box(tmp_path):
    row = {key: value for key, value in BOX.items() if key != "area"}
    assert read(tmp_path, annotations=[row]).areas.tolist() == [80]


def test_a_copied_annotation_counts_once_but_another_of_the_same_id_stays(tmp_path):
    found = read(tmp_path, annotations=[BOX, BOX, {**BOX, "bbox": [1, 1, 2, 2]}])
    assert found.boxes_xywh.tolist() == [[4, 5, 10, 8], [1, 1, 2, 2]]
    assert found.repairs == {"annotations given twice, copy dropped": 1}


def test_masks_are_ignored_and_crowd_is_marked(tmp_path):
    run_lengths = {"counts": [10, 5], "size": [30, 40]}
    rows = [
        {**BOX, "segmentation": run_lengths, "iscrowd": 1},
        {**BOX, "id": 2, "segmentation": [[1, 2, 3, 4, 5, 6]]},
    ]
    assert read(tmp_path, annotations=rows).crowd.tolist() == [True, False]


def test_missing_image_sizes_come_from_the_files(tmp_path):
    found = read(tmp_path, images=[{"id": 5, "file_name": "a.png"}])
    assert found.sizes.tolist() == [[30, 40]]
    assert found.repairs == {"image sizes missing, read from the files": 1}


def test_classes_of_one_name_are_told_apart_by_id(tmp_path):
    same = [{"id": 3, "name": "fish"}, {"id": 2, "name": "fish"}]
    found = read(tmp_path, categories=same)
    assert found.class_names == ("fish (2)", "fish (3)")
    assert sum(found.repairs.values()) == 2


def test_a_file_without_annotations_has_images_without_boxes(tmp_path):
    found = read(tmp_path, annotations=[])
    assert found.boxes_xywh.shape == (0, 4)
    assert found.starts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": 5, "width": 4, "height": 3}]},
            r"images\[0\]\.file_name: .*got nothing",
        ),
        ({"images": [{"id": "5", "file_name": "a"}]}, r"images\[0\]\.id: .*got '5'"),
        ({"images": [{**IMAGES[0], "width": 0}]}, r"images\[0\]: must have a size, got 0 x 30"),
        ({"images": IMAGES * 2}, r"images: ids must differ, got 1 ids .*first \[5\]"),
        ({"categories": CATEGORIES * 2}, r"categories: ids must differ, got 2"),
        ({"categories": []}, r"categories: must not be empty"),
        ({"categories": [{"id": 2}]}, r"categories\[0\]\.name"),
        (
            {"annotations": [{**BOX, "image_id": 6}]},
            r"image_id must be listed under images, .*\[6\]",
        ),
        (
            {"annotations": [{**BOX, "category_id": 1}]},
            r"category_id must be listed under categories",
        ),
        ({"annotations": [{**BOX, "category_id": True}]}, r"annotations\[0\]\.category_id: .*True"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3]}]}, r"annotations\[0\]\.bbox: .*\[1, 2, 3\]"),
        ({"annotations": [{**BOX, "bbox": [1, 2, 3, "4"]}]}, r"annotations\[0\]\.bbox"),
        ({"annotations": [{"id": 1, "image_id": 5, "category_id": 2}]}, r"\.bbox: .*got nothing"),
        ({"annotations": {"id": 1}}, r"annotations: must be a list of objects, got dict"),
        ({"images": [1]}, r"images: must be a list of objects"),
    ],
)
def test_what_would_misplace_boxes_is_an_error_that_names_the_place(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, **change)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "sub/../../a.png"])
def test_a_file_outside_the_image_folder_is_refused_with_its_entry(tmp_path, name):
    images = [IMAGES[0], {**IMAGES[0], "id": 6, "file_name": name}]
    with pytest.raises(DataError) as error:
        read(tmp_path, images=images)
    assert str(error.value) == (
        f"{tmp_path}/instances.json: images[1].file_name: must lie inside the image folder, "
        f"got {name!r}; write it relative to that folder, without `..`"
    )


def test_broken_json_is_reported_with_line_and_column(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text('{\n "images": [,]\n}')
    with pytest.raises(DataError, match=r"instances\.json:2:13: is not valid JSON"):
        read_annotations(path, lambda name: (1, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "must hold a JSON object, got list"),
        (b"{}", "images: must be a list of objects, got nothing"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b"", "is not valid JSON"),
    ],
)
def test_a_file_of_another_kind_is_an_error(tmp_path, content, message):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_annotations(path, lambda name: (1, 1))


def test_a_missing_or_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="annotation file not found; set data"):
        read_annotations(tmp_path / "nothing.json", lambda name: (1, 1))
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(tmp_path, lambda name: (1, 1))
