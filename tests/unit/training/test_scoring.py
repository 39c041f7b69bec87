"""AP as pycocotools gives it, by pycocotools and by the faster evaluator."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focus_lab.data.shapes import ShapesDataset
from focus_lab.errors import FocusLabError, UserError
from focus_lab.model.postprocess import Detections
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training import scoring_bench
from focus_lab.training.scoring import Found, check_evaluator, coco_metrics

MakeTrial = Callable[..., TrialSpec]
EVALUATORS = ("pycocotools", "faster-coco-eval")
NAMES = ("AP", "AP50", "AP75", "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL")


@pytest.fixture
def scenes(tiny_trial: MakeTrial) -> ShapesDataset:
    return ShapesDataset(tiny_trial(data={"num_val": 12}).data, "val")


def found_of(rows: list[dict[str, Any]]) -> Found:
    return Found(
        np.array([row["image_id"] for row in rows], dtype=np.int64),
        np.array([row["category_id"] for row in rows], dtype=np.int64),
        np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([row["score"] for row in rows], dtype=np.float64),
    )


def noisy_detections(dataset: ShapesDataset, noise: float) -> Found:
    """The true boxes, moved, with some wrong classes and some doubles."""
    rng = np.random.default_rng(0)
    rows = []
    for truth in dataset.coco_ground_truth()["annotations"]:
        for _ in range(rng.integers(1, 3)):
            box = np.asarray(truth["bbox"]) + rng.normal(0, noise, 4)
            category = truth["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 4))
            rows.append(
                {
                    "image_id": truth["image_id"],
                    "category_id": category,
                    "bbox": [*box[:2].tolist(), *np.maximum(box[2:], 1.0).tolist()],
                    "score": float(rng.random()),
                }
            )
    return found_of(rows)


def by_hand(truth: dict[str, Any], found: Found, **parameters: Any) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        run = COCOeval(expected, expected.loadRes(found.rows()), "bbox")
        for name, value in parameters.items():
            setattr(run.params, name, value)
        run.evaluate()
        run.accumulate()
        run.summarize()
    stats: list[float] = run.stats.tolist()
    return stats


def test_the_numbers_are_those_of_pycocotools(scenes: ShapesDataset) -> None:
    found = noisy_detections(scenes, noise=1.5)
    metrics = coco_metrics(scenes.coco_ground_truth(), found)
    stats = by_hand(scenes.coco_ground_truth(), found)
    assert 0.05 < stats[0] < 0.95
    assert [metrics[f"coco/{name}"] for name in NAMES] == stats
    assert metrics["coco/AR"] == stats[8]


def test_ap_of_a_class_is_that_of_an_evaluation_of_the_class_alone(scenes: ShapesDataset) -> None:
    found = noisy_detections(scenes, noise=1.5)
    metrics = coco_metrics(scenes.coco_ground_truth(), found)
    for category, name in zip(scenes.category_ids, scenes.class_names, strict=True):
        alone = by_hand(scenes.coco_ground_truth(), found, catIds=[category])
        assert metrics[f"coco/AP_class/{name}"] == pytest.approx(alone[0], abs=1e-12)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_true_boxes_are_an_ap_of_one(scenes: ShapesDataset, evaluator: Any) -> None:
    truth = scenes.coco_ground_truth()
    found = found_of([{**box, "score": 0.9} for box in truth["annotations"]])
    assert coco_metrics(truth, found, evaluator)["coco/AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detection_at_all_is_an_ap_of_zero(scenes: ShapesDataset, evaluator: Any) -> None:
    metrics = coco_metrics(scenes.coco_ground_truth(), Found.joined([]), evaluator)
    assert metrics["coco/AP"] == metrics["coco/AP50"] == metrics["coco/AR"] == 0.0
    assert [metrics[f"coco/AP_class/{name}"] for name in scenes.class_names] == [0.0] * 3
    # No box is that large: nothing was missed.
    assert metrics["coco/APL"] == -1.0


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[dict[str, Any], Found]:
    """Small data sets made to be awkward.

    Boxes on a coarse grid overlap equally often, few score levels tie, ids have gaps, images and
    classes may be without truth or detections, an image may have far more than 100 of a class.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, classes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cell = draw(st.sampled_from([1.0, 0.37, 8.0, 40.0]))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    crowd = draw(st.sampled_from([0.0, 0.3, 1.0]))
    most_truths, most_found = draw(st.integers(0, 6)), draw(st.sampled_from([0, 3, 30, 250]))

    def box() -> list[float]:
        corner, sides = rng.integers(0, 4, 2) * cell, rng.integers(1, 6, 2) * cell
        return [*corner.tolist(), *sides.tolist()]

    truth: dict[str, Any] = {
        "images": [{"id": 7 * image, "height": 400, "width": 400} for image in range(images)],
        # One class more than occurs among the true boxes.
        "categories": [{"id": 3 * k + 1, "name": f"class {k}"} for k in range(classes + 1)],
        "annotations": [],
    }
    rows = []
    for image in range(images):
        for _ in range(rng.integers(0, most_truths + 1)):
            x, y, width, height = box()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 7 * image,
                    "category_id": 3 * int(rng.integers(classes)) + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height * float(rng.choice([0.5, 1.0])),
                    "iscrowd": int(rng.random() < crowd),
                }
            )
        rows += [
            {
                "image_id": 7 * image,
                "category_id": 3 * int(rng.integers(classes + 1)) + 1,
                "bbox": box(),
                "score": float(rng.integers(levels)) / levels,
            }
            for _ in range(rng.integers(0, most_found + 1))
        ]
    return truth, found_of(rows)


@settings(max_examples=120, deadline=None)
@given(data_sets())
def test_the_faster_evaluator_gives_the_numbers_of_pycocotools(
    case: tuple[dict[str, Any], Found],
) -> None:
    truth, found = case
    expected = coco_metrics(truth, found, "pycocotools")
    assert coco_metrics(truth, found, "faster-coco-eval") == pytest.approx(
        expected, rel=0, abs=1e-12
    )


def test_detections_of_images_are_the_same_in_arrays_and_rows() -> None:
    one = Detections(
        torch.tensor([0.75, 0.5]),
        torch.tensor([1, 0]),
        torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 0.5, 0.25]]),
    )
    none = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    found = Found.joined(
        [Found.of_image(image, part, (5, 9)) for image, part in ((3, one), (4, none), (2, one))]
    )
    assert len(found) == 4
    assert found.rows()[1:3] == [
        {"image_id": 3, "category_id": 5, "bbox": [0.0, 0.0, 0.5, 0.25], "score": 0.5},
        {"image_id": 2, "category_id": 9, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75},
    ]


def test_an_evaluator_that_is_not_installed_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, scenes: ShapesDataset
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"compute\.evaluator: .* got .*; install it .* or set"):
        coco_metrics(scenes.coco_ground_truth(), Found.joined([]), "faster-coco-eval")


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_version_of_an_evaluator_is_that_of_its_package(evaluator: Any) -> None:
    assert check_evaluator(evaluator) == importlib.metadata.version(evaluator)


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_left_as_it_was(
    collecting: bool, scenes: ShapesDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "isenabled", lambda: collecting)
    enabled: list[bool] = []
    monkeypatch.setattr(gc, "disable", lambda: enabled.append(False))
    monkeypatch.setattr(gc, "enable", lambda: enabled.append(True))
    coco_metrics(scenes.coco_ground_truth(), Found.joined([]))
    assert enabled == ([False, True] if collecting else [False])


def test_the_bench_reports_times_their_ratio_and_equal_numbers() -> None:
    told: list[str] = []
    result = scoring_bench.bench_evaluate(6, 20, 3, rounds=2, on_round=told.append)
    [row] = result["rows"]
    assert row["case"] == "6 images x 20 detections, 3 classes"
    assert row["ratio"] == row["against_ms"] / row["ours_ms"]
    assert row["largest_difference"] <= 1e-12
    assert 0 < row["AP"] < 1
    assert len(told) == 4


def test_the_bench_refuses_numbers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"pycocotools": {"coco/AP": 0.5}, "faster-coco-eval": {"coco/AP": 0.5 + 1e-9}}
    monkeypatch.setattr(scoring_bench, "coco_metrics", lambda truth, found, name: metrics[name])
    with pytest.raises(FocusLabError, match="disagree, got a difference of 1e-09"):
        scoring_bench.bench_evaluate(2, 3, 2)


def test_metrics_of_other_names_differ_infinitely() -> None:
    assert scoring_bench.largest_difference({"a": 1.0}, {"a": 1.0, "b": 0.0}) == float("inf")


def test_the_bench_refuses_an_empty_data_set() -> None:
    with pytest.raises(UserError, match="--images: must be at least 1, got 0"):
        scoring_bench.bench_evaluate(0)
