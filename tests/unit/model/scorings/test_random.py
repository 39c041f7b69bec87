"""Scores by lot are a function of what they are said to be, and uniform."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.scorings.random import RandomSelector
from focus_lab.model.token_selection import TokensToScore

WORD = 2**64


def scores(image_ids, shapes=((4, 6), (2, 3)), seed=0):
    maps = [torch.zeros(len(image_ids), 1, *shape) for shape in shapes]
    levels = FeatureLevels.measure(maps, (32, 48), None)
    features = torch.zeros(len(image_ids), levels.num_tokens, 4)
    given_tokens = TokensToScore(
        features, levels, None, lambda: features, (8, 16), (), image_ids=image_ids, seed=seed
    )
    return RandomSelector(0.5, (1.0,)).score(given_tokens)


def mixed(number):
    """SplitMix64 in Python's whole numbers."""
    number = (number + 0x9E3779B97F4A7C15) % WORD
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) % WORD
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) % WORD
    return number ^ number >> 31


@given(image=st.integers(0, 2**62 - 1), seed=st.integers(0, 2**62 - 1))
def test_a_score_is_the_hash_of_seed_image_level_row_and_column(image, seed):
    found = scores((image,), seed=seed)[0].tolist()
    key = mixed((mixed(image) + seed) % WORD)
    places = [(0, y, x) for y in range(4) for x in range(6)]
    places += [(1, y, x) for y in range(2) for x in range(3)]
    expected = [
        (mixed((key + ((level * 2**16 + y) * 2**16 + x) * 0x9E3779B97F4A7C15) % WORD) >> 40) / 2**24
        for level, y, x in places
    ]
    assert found == expected


def test_the_first_output_of_the_hash_is_the_published_one():
    assert mixed(0) == 0xE220A8397B1DCDAF


def test_a_token_has_the_same_score_on_a_larger_canvas():
    small, large = scores((3,))[0, :24].view(4, 6), scores((3,), ((8, 9), (4, 5)))[0, :72]
    assert torch.equal(small, large.view(8, 9)[:4, :6])


def test_scores_are_uniform_and_images_independent():
    drawn = scores(tuple(range(200)), ((20, 30), (10, 15)), seed=5)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=4 * 0.2887 / drawn.numel() ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / 12, rel=0.01)
    correlation = torch.corrcoef(drawn[:20])
    assert (correlation - torch.eye(20)).abs().max() < 5 / drawn.shape[1] ** 0.5
