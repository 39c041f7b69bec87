"""Budgets, scores and nested selections of the foreground token selector."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.output import SelectedTokens
from focus_lab.model.token_selection import (
    TokenSelector,
    best_of_each_level,
    level_budgets,
    token_budgets,
    token_counts,
)

RELEASED = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


def levels_of(shapes, batch=2, canvas=(64, 64), sizes=None):
    return FeatureLevels.measure([torch.zeros(batch, 1, *shape) for shape in shapes], canvas, sizes)


def test_an_800x1333_image_has_the_released_counts():
    budgets = token_budgets([22223], 0.5)
    assert budgets == (11112,)
    assert token_counts(budgets, 22223, RELEASED) == (11112, 8889, 6667, 6667, 4444, 2222)


@given(
    valid=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    ratio=st.floats(0.001, 1.0),
    cascade=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6),
)
def test_budgets_and_counts_never_leave_what_exists(valid, ratio, cascade):
    budgets = token_budgets(valid, ratio)
    counts = token_counts(budgets, 500, cascade)
    assert all(1 <= budget <= count for budget, count in zip(budgets, valid, strict=True))
    assert all(1 <= count <= max(budgets) for count in counts)
    # A larger share is never fewer tokens.
    by_share = [count for _, count in sorted(zip(cascade, counts, strict=True))]
    assert by_share == sorted(counts)


def test_keeping_everything_keeps_the_valid_tokens_of_each_image():
    assert token_budgets([85, 40], 1.0) == (85, 40)
    assert token_counts((85, 40), 85, (1.0, 1.0)) == (85, 85)


@pytest.fixture
def levels():
    return levels_of([(8, 8), (4, 4)], sizes=[(64, 64), (32, 64)])


@pytest.fixture
def scores():
    return torch.randn(2, 80, generator=torch.Generator().manual_seed(0))


def test_layers_are_nested_prefixes_by_falling_score(levels, scores):
    selection = TokenSelector(0.5, (1.0, 0.5)).select(scores, levels, levels.padding_mask())
    first, second = selection.indices
    assert torch.equal(second, first[:, : selection.counts[1]])
    assert (selection.scores.diff(dim=1) <= 0).all()
    assert torch.equal(selection.scores[0], scores[0, first[0]])


def test_padding_is_chosen_only_after_all_valid_tokens(levels, scores):
    padding = levels.padding_mask()
    selection = TokenSelector(1.0, (1.0, 1.0)).select(scores, levels, padding)
    is_padding = padding.gather(1, selection.indices[0])
    assert not is_padding[1, :40].any()
    assert is_padding[1, 40:].all()


def test_kept_tokens_are_limited_by_the_images_budget():
    selection = SelectedTokens((), torch.zeros(0), (10, 4), (6, 10), (12, 20), ((4, 5),))
    assert selection.kept == ((6, 10), (4, 4))


def test_ratios_by_level_are_salience_detrs_shares():
    valid = [(16700, 4200, 1050, 273), (16000, 4000, 1000, 250)]
    assert level_budgets(valid, 1.0, (0.4, 0.8, 1.0, 1.0)) == (
        (6680, 3360, 1050, 273),
        (6400, 3200, 1000, 250),
    )
    assert level_budgets([(64, 1, 0)], 0.5, (0.5, 0.5, 1.0)) == ((16, 1, 0),)


def test_each_level_keeps_its_own_best_and_the_best_of_all_come_first():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, -5.0, -6.0], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]])
    order = best_of_each_level(scores, (4, 2), [(2, 1), (1, 2)])
    assert order.tolist() == [[3, 2, 4, 1, 0, 5], [0, 4, 5, 1, 2, 3]]


def test_padding_is_never_among_the_best_of_its_level(levels, scores):
    padding = levels.padding_mask()
    selector = TokenSelector(1.0, (1.0, 0.5), (0.5, 1.0))
    selection = selector.select(scores, levels, padding)
    assert selection.budgets == (32 + 16, 16 + 8)
    assert selection.counts == (48, 24)
    assert not padding[1, selection.indices[0][1, :24]].any()
    by_level = [(selection.indices[0][image, :24] < 64).sum() for image in (0, 1)]
    assert by_level[1] == 16
    joint = TokenSelector(0.6, (1.0,)).select(scores, levels, padding)
    assert (joint.indices[0][1, :24] < 64).sum() != 16


def test_a_rising_cascade_takes_longer_prefixes_of_the_same_ranking(levels, scores):
    selection = TokenSelector(0.5, (0.2, 1.0)).select(scores, levels, levels.padding_mask())
    few, many = selection.indices
    assert selection.counts == (8, 41)
    assert torch.equal(few, many[:, :8])
    assert selection.largest is many
    assert torch.equal(selection.scores[0], scores[0, many[0]])
