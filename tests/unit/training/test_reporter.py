"""The best epoch of a history."""

from __future__ import annotations

from focus_lab.training.reporter import best_epoch


def test_the_best_epoch_has_the_largest_metric_and_is_the_first_of_equals() -> None:
    history = [(1, {"coco/AP": 0.1}), (2, {"coco/AP": 0.3}), (3, {}), (4, {"coco/AP": 0.3})]
    assert best_epoch(history) == (2, {"coco/AP": 0.3})
    assert best_epoch(history, "coco/AP50") is None
    assert best_epoch([]) is None
