import json

import numpy as np
import pytest

from focus_lab.analysis.breakdowns import FILE, read_breakdown, read_breakdowns
from focus_lab.analysis.class_plots import precision_plot
from focus_lab.analysis.confusion import MAX_CLASSES, confusion_table
from focus_lab.analysis.summary import compare
from focus_lab.training import breakdown as written
from focus_lab.training.scoring import Found, coco_scores

APS = {"a": {0: 0.2, 1: 0.3}, "base": {0: 0.3}}


def test_what_training_writes_is_what_analysis_reads(tmp_path):
    truth = {
        "images": [{"id": 4, "width": 90, "height": 90}],
        "categories": [{"id": 7, "name": "ring"}, {"id": 9, "name": "cross"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "bbox": [5, 5, 40, 40], "area": 1600,
             "iscrowd": 0}
        ],
    }  # fmt: skip
    detected = Found(
        np.array([4, 4]),
        np.array([7, 9]),
        np.array([[60.0, 60, 20, 20], [5, 5, 40, 40]]),
        np.array([0.8, 0.9]),
    )
    path = written.write_breakdown(truth, detected, coco_scores(truth, detected), tmp_path)
    assert path.name == FILE
    found = read_breakdown(tmp_path)
    assert found.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert found.precision["0.75"].tolist() == [1.0] * 101


def test_counts_are_read_as_rows_of_the_truth(samples_folder):
    found = read_breakdown(samples_folder)
    assert found.class_names == ("ring", "cross")
    assert found.confusion.tolist() == [[6, 2, 2], [0, 5, 0], [3, 0, 0]]
    assert (found.iou, found.score) == (0.5, 0.3)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "",
        lambda content: "[1]",
        lambda content: json.dumps(content | {"precision": {"0.50": [0.5] * 7}}),
        lambda content: json.dumps(content | {"confusion": {}}),
        lambda content: json.dumps(
            content | {"confusion": content["confusion"] | {"counts": [[9, 9, 1]]}}
        ),
    ],
)
def test_a_broken_file_is_as_good_as_none(samples_folder, change):
    path = samples_folder / FILE
    path.write_text(change(json.loads(path.read_text())))
    assert read_breakdown(samples_folder) is None


def test_confusions_are_summed_over_seeds_as_shares_of_each_class(make_record, samples_folder):
    found = read_breakdowns(make_record(APS, samples=samples_folder))
    assert {name: len(breakdowns) for name, breakdowns in found.items()} == {"a": 2, "base": 1}
    table = confusion_table("a", found["a"])
    assert table.columns == ("ring", "cross", "missed")
    assert table.rows[0] == ("ring (20)", (("60", 0.6), ("20", 0.2), ("20", 0.2)))
    assert table.rows[1] == ("cross (10)", (("", 0.0), ("100", 1.0), ("", 0.0)))
    # Detections of nothing are counted, they are a share of nothing.
    assert table.rows[2] == ("nothing (6)", (("6", 0.0), ("", 0.0), ("", 0.0)))


def test_rare_classes_stand_together(samples_folder):
    path = samples_folder / FILE
    content = json.loads(path.read_text())
    classes = MAX_CLASSES + 3
    counts = [[n, n, 10 + n] for n in range(classes)] + [[0, 1, 5]]
    names = [f"class {n}" for n in range(classes)]
    content["confusion"] |= {"class_names": names, "counts": counts}
    path.write_text(json.dumps(content))
    table = confusion_table("x", [read_breakdown(samples_folder)])
    assert table.columns == (*names[:1], *names[4:], "3 other classes", "missed")
    # Classes 1 to 3 are the rarest, once 0 has five more; five of its boxes were called a 1.
    assert table.rows[0][1][-2] == ("33", pytest.approx(5 / 15))
    assert table.rows[-2] == ("3 other classes (36)", (*[("", 0.0)] * 12, ("100", 1.0), ("", 0.0)))


def test_precision_is_drawn_once_a_cell_with_a_band_where_seeds_differ(make_record, samples_folder):
    record = make_record(APS, samples=samples_folder)
    svg = precision_plot(compare(record), read_breakdowns(record))
    assert "precision at IoU 0.75" in svg
    assert precision_plot(compare(record), {}) is None
    only = {"base": read_breakdowns(record)["base"]}
    assert only["base"][0].precision["0.50"].sum() == pytest.approx(np.float64(54.0))
    assert ">a<" not in precision_plot(compare(record), only)
