"""What lies behind AP, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from focus_lab.training.breakdown import FILE, MAX_COUNTS, write_breakdown
from focus_lab.training.scoring import Found, Scores, coco_scores

CAT, DOG, OWL = 3, 7, 9


def truth_of(*boxes: tuple[int, int, list[float], int], classes: int = 3) -> dict[str, Any]:
    """Instances from (image, category, box, crowd)."""
    ids = [CAT, DOG, OWL, *range(10, 10 + classes - 3)]
    return {
        "images": [{"id": i, "width": 200, "height": 200} for i in {box[0] for box in boxes}],
        "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        "annotations": [
            {
                "id": number + 1,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for number, (image, category, box, crowd) in enumerate(boxes)
        ],
    }


def found_of(*rows: tuple[int, int, list[float], float]) -> Found:
    return Found(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([row[3] for row in rows], dtype=np.float64),
    )


def written(truth: dict[str, Any], found: Found, folder: Path) -> dict[str, Any]:
    path = write_breakdown(truth, found, coco_scores(truth, found), folder)
    assert [path.name for path in folder.iterdir()] == [FILE]
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_confusion_counts_what_was_taken_for_what(tmp_path: Path) -> None:
    box, near, far = [10.0, 10, 40, 40], [12.0, 10, 40, 40], [120.0, 120, 40, 40]
    crowd = [0.0, 100, 60, 60]
    truth = truth_of((1, CAT, box, 0), (1, DOG, far, 0), (2, OWL, box, 0), (2, DOG, crowd, 1))
    found = found_of(
        (1, DOG, near, 0.9),  # a cat taken for a dog
        (1, CAT, near, 0.2),  # not sure enough
        (2, OWL, box, 0.8),  # right
        (2, OWL, near, 0.7),  # a double: nothing is left for it
        (2, CAT, [5.0, 105, 20, 20], 0.6),  # inside a crowd: ignored
        (2, CAT, far, 0.5),  # nothing there
    )
    confusion = written(truth, found, tmp_path)["confusion"]
    cat, dog, owl, none = range(4)
    assert confusion["class_names"] == ["class 3", "class 7", "class 9"]
    assert confusion["counts"] == [
        [cat, dog, 1], [dog, none, 1], [owl, owl, 1], [none, cat, 1], [none, owl, 1],
    ]  # fmt: skip


def test_the_closer_box_is_paired_first(tmp_path: Path) -> None:
    one, other = [10.0, 10, 40, 40], [20.0, 10, 40, 40]
    truth = truth_of((1, CAT, one, 0), (1, DOG, other, 0))
    # Lies on both: nearer to the dog, although the cat stands first.
    confusion = written(truth, found_of((1, DOG, [18.0, 10, 40, 40], 0.9)), tmp_path)["confusion"]
    assert confusion["counts"] == [[0, 3, 1], [1, 1, 1]]


def test_precision_curves_are_pycocotools_and_their_mean_is_ap50(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = [(i, CAT, [*rng.uniform(0, 100, 2).tolist(), 30.0, 30.0], 0) for i in range(1, 30)]
    boxes += [(i, DOG, [*rng.uniform(0, 100, 2).tolist(), 30.0, 30.0], 0) for i in range(1, 9)]
    truth = truth_of(*boxes)
    found = found_of(
        *(
            (image, category, (np.array(box) + rng.normal(0, 4, 4)).tolist(), float(rng.random()))
            for image, category, box, _ in boxes
        )
    )
    content = written(truth, found, tmp_path)
    metrics = coco_scores(truth, found).metrics
    assert np.mean(content["precision"]["0.50"]) == pytest.approx(metrics["coco/AP50"], abs=6e-4)
    assert np.mean(content["precision"]["0.75"]) == pytest.approx(metrics["coco/AP75"], abs=6e-4)
    curves = content["precision_by_class"]
    assert set(curves) == {"class 3", "class 7"}  # there is no owl
    assert np.mean(list(curves.values()), axis=0) == pytest.approx(
        content["precision"]["0.50"], abs=1e-3
    )


def test_without_any_box_or_detection_there_is_a_file_too(tmp_path: Path) -> None:
    truth = truth_of()
    truth["images"] = [{"id": 1, "width": 9, "height": 9}]
    content = written(truth, found_of(), tmp_path)
    assert content["precision"] == {}
    assert content["confusion"]["counts"] == []
    content = written(truth_of((1, DOG, [1.0, 1, 5, 5], 0)), found_of(), tmp_path)
    assert content["confusion"]["counts"] == [[1, 3, 1]]
    assert set(content["precision"]["0.50"]) == {0.0}


def test_the_file_is_bounded_and_keeps_the_most_frequent_pairs(tmp_path: Path) -> None:
    classes = 120
    ids = [CAT, DOG, OWL, *range(10, 10 + classes - 3)]
    box = [10.0, 10, 40, 40]
    pairs = [(a, b) for a in ids for b in ids]
    truth = truth_of(
        *((i, a, box, 0) for i, (a, _) in enumerate(pairs)),
        *((len(pairs) + i, CAT, box, 0) for i in range(5)),
        classes=classes,
    )
    found = found_of(
        *((i, b, box, 0.9) for i, (_, b) in enumerate(pairs)),
        *((len(pairs) + i, DOG, box, 0.9) for i in range(5)),
    )
    precision = np.linspace(0, 1, 10 * 101 * classes).reshape(10, 101, classes)
    path = write_breakdown(truth, found, Scores({}, precision, tuple(ids)), tmp_path)
    assert path.stat().st_size < 512 * 1024
    content = json.loads(path.read_text())
    assert content["precision_by_class"] == {}
    assert [0, 1, 6] in content["confusion"]["counts"]
    assert len(content["confusion"]["counts"]) == MAX_COUNTS
    assert content["confusion"]["left_out"] == classes**2 - MAX_COUNTS
