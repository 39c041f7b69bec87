from dataclasses import replace

import pytest

from focus_lab.analysis.summary import compare


def test_means_are_of_the_last_epoch_of_succeeded_trials_only(make_record):
    record = make_record({"a": {0: 0.2, 1: 0.4}, "base": {0: 0.3, 1: 0.3}})
    failed = replace(record.trials[1], state="FAILED")
    record = replace(record, trials=(record.trials[0], failed, *record.trials[2:]))
    cell = compare(record).cells[0]
    assert (cell.n, cell.mean("coco/AP")) == (1, 0.2)


def test_no_box_is_no_number(make_record):
    cell = compare(make_record({"a": {0: 0.2}})).cells[0]
    assert cell.mean("coco/APL") is None
    assert "coco/APL" in cell.no_box


def test_a_number_that_is_not_finite_counts_as_not_measured(make_record):
    assert compare(make_record({"a": {0: float("nan")}})).cells[0].mean("coco/AP") is None


def test_throughput_is_the_median_over_the_epochs(make_record):
    cell = compare(make_record({"a": {0: 0.2}})).cells[0]
    assert cell.mean("train/images_per_second") == 15.0


def test_differences_are_paired_with_the_baseline_by_seed(make_record):
    comparison = compare(make_record({"a": {0: 0.2, 1: 0.25}, "base": {1: 0.3, 2: 0.9}}))
    difference = comparison.cells[0].difference("coco/AP")
    assert difference is not None
    assert (difference.n, difference.mean) == (1, pytest.approx(-0.05))
    assert comparison.cells[1].differences is None


def test_a_baseline_without_result_leaves_no_differences(make_record):
    comparison = compare(make_record({"a": {0: 0.2}, "base": {}}))
    assert comparison.baseline is None
    assert comparison.cells[0].differences is None


def test_the_front_is_over_means_and_counted_by_seed(make_record):
    # Cells cost more from left to right; `b` beats `a` in AP on the mean and in seed 0 only.
    comparison = compare(make_record({"a": {0: 0.2, 1: 0.3}, "b": {0: 0.4, 1: 0.25}}))
    first, second = comparison.cells
    assert (first.on_front, second.on_front) == (True, True)
    assert (first.seeds_on_front, second.seeds_on_front) == ((2, 2), (1, 2))


def test_a_cell_without_an_objective_is_not_on_the_front(make_record):
    record = make_record({"a": {0: 0.2}}, objectives={"coco/AP": "max", "cost/x": "min"})
    assert not compare(record).cells[0].on_front
