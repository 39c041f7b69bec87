"""Names of metrics."""

import pytest

from focus_lab.specs.metrics import METRICS, is_metric, suggestion


@pytest.mark.parametrize(
    "name",
    [
        "coco/AP_class/red circle",
        "tokens/kept_layer_3",
        "tokens/kept_level_0",
        "tokens/foreground_recall_level_0",
        "tokens/foreground_recall_small",
        "loss/giou_1",
    ],
)
def test_families_are_known_by_their_pattern(name: str) -> None:
    assert name not in METRICS
    assert is_metric(name)


@pytest.mark.parametrize("name", ["coco/mAP", "loss", "tokens/kept_layer_", "epoch", "AP", ""])
def test_other_names_are_no_metrics(name: str) -> None:
    assert not is_metric(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("coco/mAP", "coco/AP"), ("ap50", "coco/AP50"), ("cost/gflop", "cost/gflops")],
)
def test_a_near_name_is_suggested(name: str, meant: str) -> None:
    assert suggestion(name) == f"did you mean {meant}?"
