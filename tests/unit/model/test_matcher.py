from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.errors import NonFiniteLossError
from focus_lab.model.matcher import HungarianMatcher
from focus_lab.model.padded_targets import pad_targets

CLASSES = 3


def matcher():
    return HungarianMatcher(2.0, 5.0, 2.0, focal_alpha=0.25, focal_gamma=2.0)


def batch(seed, counts, num_outputs=1, num_queries=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_outputs, len(counts), num_queries, CLASSES, generator=generator)
    boxes = torch.rand(num_outputs, len(counts), num_queries, 4, generator=generator)
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator),
        }
        for count in counts
    ]
    return logits, boxes, targets


def pairs(matches, output, image):
    mine = matches.images == image
    return matches.queries[output][mine], matches.targets[output][mine]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_no_other_assignment_costs_less(seed, count, num_queries):
    logits, boxes, targets = batch(seed, [count], num_queries=num_queries)
    padded = pad_targets(targets)
    costs = matcher().costs(logits, boxes, padded)[0, 0].double()
    queries, chosen = pairs(matcher()(logits, boxes, padded), 0, 0)
    assert len(queries) == min(count, num_queries)
    if num_queries < count:
        costs = costs.T
    rows, columns = costs.shape
    best = min(
        sum(costs[row, column].item() for column, row in enumerate(order))
        for order in permutations(range(rows), columns)
    )
    picked = (chosen, queries) if num_queries < count else (queries, chosen)
    assert costs[picked].sum().item() == pytest.approx(best, abs=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_matching_a_batch_of_outputs_is_matching_them_one_by_one(seed, counts):
    logits, boxes, targets = batch(seed, counts, num_outputs=3)
    together = matcher()(logits, boxes, pad_targets(targets))
    for output in range(3):
        for image, one in enumerate(targets):
            alone = matcher()(
                logits[output : output + 1, image : image + 1],
                boxes[output : output + 1, image : image + 1],
                pad_targets([one]),
            )
            queries, chosen = pairs(together, output, image)
            assert torch.equal(queries, alone.queries[0])
            assert torch.equal(chosen, alone.targets[0])


def test_a_batch_without_boxes_has_no_matches():
    logits, boxes, targets = batch(0, [0, 0], num_outputs=2)
    matches = matcher()(logits, boxes, pad_targets(targets))
    assert matches.images.shape == (0,)
    assert matches.queries.shape == matches.targets.shape == (2, 0)


def test_perfect_predictions_are_matched_to_their_boxes():
    _, _, targets = batch(1, [4])
    order = torch.tensor([2, 0, 3, 1])
    boxes = targets[0]["boxes"][order][None, None]
    logits = torch.nn.functional.one_hot(targets[0]["labels"][order], CLASSES)[None, None] * 8.0
    queries, chosen = pairs(matcher()(logits, boxes, pad_targets(targets)), 0, 0)
    assert torch.equal(queries, torch.arange(4))
    assert torch.equal(chosen, order)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_told_in_a_sentence(value):
    logits, boxes, targets = batch(2, [1, 2], num_outputs=2)
    boxes[1, 0, 3, 2] = value
    with pytest.raises(NonFiniteLossError, match=r"output 1, image 0 .* not finite"):
        matcher()(logits, boxes, pad_targets(targets))


def test_matching_leaves_no_trace_in_autograd():
    logits, boxes, targets = batch(3, [2])
    matches = matcher()(logits.requires_grad_(), boxes.requires_grad_(), pad_targets(targets))
    assert not matches.queries.requires_grad
