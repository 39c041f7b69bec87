import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.model.postprocess import postprocess


def predictions(seed=0, num_images=2, num_queries=5, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_queries, num_classes, generator=generator)
    return logits, torch.rand(num_images, num_queries, 4, generator=generator)


@settings(deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 40), st.tuples(st.integers(1, 500), st.integers(1, 500))
)
def test_detections_fall_in_score_and_lie_inside_the_image(seed, num_detections, original):
    logits, boxes = predictions(seed)
    for found in postprocess(logits, boxes, [(32, 48)] * 2, [original] * 2, num_detections):
        assert len(found.scores) <= min(num_detections, 15)
        assert (found.scores[:-1] >= found.scores[1:]).all()
        x1, y1, x2, y2 = found.boxes_xyxy.unbind(dim=1)
        assert ((x1 >= 0) & (x2 <= original[1]) & (x1 < x2)).all()
        assert ((y1 >= 0) & (y2 <= original[0]) & (y1 < y2)).all()


def test_more_detections_than_pairs_gives_all_pairs():
    logits, _ = predictions()
    boxes = torch.full((2, 5, 4), 0.5)
    found = postprocess(logits, boxes, [(10, 10)] * 2, [(10, 10)] * 2, 300)
    assert [len(each.scores) for each in found] == [15, 15]


def test_box_class_and_score_belong_together():
    logits = torch.full((1, 3, 4), -9.0)
    logits[0, 2, 1] = 3.0
    boxes = torch.tensor([[[0.1] * 4, [0.2] * 4, [0.5, 0.5, 0.2, 0.4]]])
    (found,) = postprocess(logits, boxes, [(50, 100)], [(100, 200)], 1)
    assert found.labels.tolist() == [1]
    assert torch.allclose(found.scores, torch.tensor([3.0]).sigmoid())
    assert torch.allclose(found.boxes_xyxy, torch.tensor([[80.0, 30.0, 120.0, 70.0]]))


def test_empty_boxes_are_dropped():
    logits = torch.zeros(1, 2, 1)
    boxes = torch.tensor([[[0.5, 0.5, 0.0, 0.5], [0.5, 0.5, 0.5, 0.5]]])
    (found,) = postprocess(logits, boxes, [(10, 10)], [(10, 10)], 2)
    assert len(found.boxes_xyxy) == 1


def test_half_precision_predictions_give_float32_detections():
    logits, boxes = predictions()
    found = postprocess(logits.half(), boxes.half(), [(10, 10)] * 2, [(999, 999)] * 2, 4)
    assert found[0].boxes_xyxy.dtype == found[0].scores.dtype == torch.float32
