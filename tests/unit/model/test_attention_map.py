"""Where the decoder looks, by hand and against a loop; the labels and the loss made of it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from focus_lab.model.attention_map import AttentionMap, attention_labels, attention_loss
from focus_lab.model.feature_levels import FeatureLevels

SHAPES = ((3, 4), (2, 2))


def levels(batch=1):
    return FeatureLevels.measure([torch.zeros(batch, 1, *s) for s in SHAPES], (24, 32), None)


def one_sample(x, y, weight=1.0):
    """The map of a query that looks at one place (in cells) of the first level."""
    found = AttentionMap(levels())
    locations = torch.full((1, 1, 1, 2, 1, 2), 9.0)  # the second level's sample is far outside
    locations[..., 0, :, :] = torch.tensor([x / 4, y / 3])
    found.add(locations, torch.full((1, 1, 1, 2, 1), weight))
    return found.of_tokens(None)[0]


def test_a_sample_is_shared_by_the_four_cells_around_it():
    found = one_sample(1.25, 1.5, weight=2.0)[:12].view(3, 4)
    expected = torch.zeros(3, 4)
    expected[1, 1] = expected[2, 1] = 2 * 0.75 * 0.5
    expected[1, 2] = expected[2, 2] = 2 * 0.25 * 0.5
    torch.testing.assert_close(found, expected)


def test_cell_0_is_at_place_0_and_not_at_half_a_cell():
    assert one_sample(2.0, 1.0).nonzero().flatten().tolist() == [6]


@pytest.mark.parametrize(
    ("x", "y", "total"), [(-0.25, 1.0, 0.75), (3.5, 2.5, 0.25), (-1.0, 0.0, 0.0), (0, 99, 0)]
)
def test_what_falls_outside_is_dropped(x, y, total):
    assert one_sample(x, y).sum().item() == pytest.approx(total)


def test_layers_heads_and_queries_add_up_as_in_a_loop():
    torch.manual_seed(0)
    found, expected = AttentionMap(levels(2), first_query=1), torch.zeros(2, 16)
    for _ in range(2):
        locations = torch.rand(2, 4, 2, 2, 3, 2) * 1.4 - 0.2
        weights = torch.rand(2, 4, 2, 2, 3)
        found.add(locations, weights)
        for place in torch.cartesian_prod(*[torch.arange(n) for n in (2, 4, 2, 2, 3)]).tolist():
            image, query, _, level, _ = place
            if query < 1:
                continue
            height, width = SHAPES[level]
            x, y = (locations[tuple(place)] * torch.tensor([width, height])).tolist()
            for cell_y in range(height):
                for cell_x in range(width):
                    share = max(0, 1 - abs(x - cell_x)) * max(0, 1 - abs(y - cell_y))
                    token = 12 * level + cell_y * width + cell_x
                    expected[image, token] += share * weights[tuple(place)].item()
    torch.testing.assert_close(found.of_tokens(None), expected)


def test_padding_is_below_everything():
    found = AttentionMap(levels())
    padding = torch.arange(16)[None] >= 10
    assert found.of_tokens(padding)[0].tolist() == [0.0] * 10 + [-1.0] * 6


def test_labels_are_the_most_looked_at_tokens_and_ties_go_to_the_earlier():
    attention = torch.tensor([[0.0, 3.0, 0.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    assert attention_labels(attention, (3, 1)).long().tolist() == [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_as_many_tokens_as_the_budget_are_labelled_and_none_beats_them(looked, budget):
    attention = torch.tensor([looked], dtype=torch.float32)
    labels = attention_labels(attention, (min(budget, len(looked)),))[0]
    assert labels.sum() == min(budget, len(looked))
    if not labels.all():
        assert attention[0, labels].min() >= attention[0, ~labels].max()


def test_the_loss_is_the_mean_over_valid_tokens_then_images():
    logits = torch.tensor([[2.0, -1.0, 50.0], [0.0, 0.0, 0.0]])
    attention = torch.tensor([[1.0, 0.5, -1.0], [0.0, 0.0, 3.0]])
    first = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    expected = (first + math.log(2)) / 2
    assert attention_loss(logits, attention, (1, 1)).item() == pytest.approx(expected)


def test_without_padding_the_loss_is_the_multi_label_soft_margin_of_sparse_detr():
    torch.manual_seed(0)
    logits, attention = torch.randn(3, 20), torch.rand(3, 20)
    labels = attention_labels(attention, (4, 5, 6)).float()
    expected = functional.multilabel_soft_margin_loss(logits, labels)
    torch.testing.assert_close(attention_loss(logits, attention, (4, 5, 6)), expected)


def test_an_images_loss_is_a_share_of_the_batchs():
    torch.manual_seed(0)
    logits, attention = torch.randn(4, 9), torch.rand(4, 9)
    whole = attention_loss(logits, attention, (2, 3, 4, 5))
    parts = attention_loss(logits[:2], attention[:2], (2, 3)) + attention_loss(
        logits[2:], attention[2:], (4, 5)
    )
    torch.testing.assert_close(parts / 2, whole)
