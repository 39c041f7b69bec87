import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.padded_targets import pad_targets


def target(count, start=0):
    labels = torch.arange(start, start + count)
    return {"labels": labels, "boxes": labels[:, None].expand(count, 4) / 100.0}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_places_of_the_padded_batch_give_all_boxes_in_order(counts):
    targets = [target(count, 10 * image) for image, count in enumerate(counts)]
    padded = pad_targets(targets)
    assert padded.counts == tuple(counts)
    assert padded.total == sum(counts)
    assert padded.boxes.shape == (len(counts), padded.width, 4)
    labels = padded.labels[padded.images, padded.positions]
    assert torch.equal(labels, torch.cat([each["labels"] for each in targets]))
    assert padded.labels.sum() == labels.sum()


def test_targets_are_not_changed():
    targets = [target(2), target(0)]
    pad_targets(targets).boxes.add_(1.0)
    assert torch.equal(targets[0]["boxes"], target(2)["boxes"])
