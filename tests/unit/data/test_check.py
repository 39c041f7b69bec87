from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_lab.data.check import check_dataset


@pytest.fixture
def folder(write_folder, make_image, make_annotation):
    return write_folder(
        [make_image(1, 200, 200), make_image(2, 200, 200), make_image(3, 200, 200)],
        [
            make_annotation(1, 1, 7, box=(0, 0, 100, 200), area=20_000),
            make_annotation(2, 1, 2, box=(0, 0, 50, 50), area=2_500),
            make_annotation(3, 2, 7, box=(-10, 0, 20, 10), area=None),
            make_annotation(4, 2, 7, iscrowd=1),
        ],
        evaluation={"size": None},
    )


def test_the_report_counts_boxes_sizes_classes_and_repairs(folder):
    report = check_dataset(folder)
    train, val = report.splits
    assert (train.images, val.images) == (2, 3)
    assert (train.images_without_boxes, val.images_without_boxes) == (0, 1)
    assert (val.boxes, val.crowd) == (3, 1)
    assert val.sizes == pytest.approx({"small": 1 / 3, "medium": 1 / 3, "large": 1 / 3})
    assert val.boxes_of_class == {"crab": 1, "fish": 2, "snail": 0}
    assert val.repairs == {
        "areas missing, computed from the box": 1,
        "boxes partly outside their image, clipped": 1,
    }
    # 100 x 200, 50 x 50, and 10 x 10 of what lies within the image.
    assert val.longer_sides == pytest.approx((50, 50 + 0.8 * 150, 200))
    assert val.foreground_pixels == pytest.approx((0.5 + 100 / 40_000 + 0) / 3)
    assert 0.1 < val.foreground_tokens < 0.25
    assert not val.decoded
    assert report.usable


def test_sides_are_those_that_the_model_sees(folder):
    halved = folder.evaluation.model_copy(update={"size": 100, "max_size": 400})
    report = check_dataset(folder.model_copy(update={"evaluation": halved}))
    assert report.splits[1].longer_sides == pytest.approx((25, 25 + 0.8 * 75, 100))


def test_decoding_finds_unreadable_images(folder):
    (Path(folder.root) / "images" / "2.png").write_bytes(b"broken")
    report = check_dataset(folder, decode=True)
    assert [split.unreadable for split in report.splits] == [1, 1]
    assert "2.png: is not a readable image" in report.splits[0].unreadable_first[0]
    assert not report.usable


def test_the_report_is_text_for_people_and_data_for_programs(folder):
    report = check_dataset(folder)
    text = report.as_text()
    for word in ("train", "val", "foreground tokens", "not decoded", "  fish", "clipped: 1"):
        assert word in text
    assert json.loads(json.dumps(report.as_dict()))["splits"][1]["boxes"] == 3
