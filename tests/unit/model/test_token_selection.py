"""Budgets, scores and nested selections of the foreground token selector."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.output import SelectedTokens
from focus_lab.model.token_selection import TokenSelector, token_budgets

RELEASED = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


def levels_of(shapes, batch=2, canvas=(64, 64), sizes=None):
    return FeatureLevels.measure([torch.zeros(batch, 1, *shape) for shape in shapes], canvas, sizes)


def test_an_800x1333_image_has_the_released_counts():
    budgets, counts = token_budgets([22223], 22223, 0.5, RELEASED)
    assert budgets == (11112,)
    assert counts == (11112, 8889, 6667, 6667, 4444, 2222)


@given(
    valid=st.lists(st.integers(1, 500), min_size=1, max_size=4),
    ratio=st.floats(0.001, 1.0),
    cascade=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6),
)
def test_budgets_and_counts_never_leave_what_exists(valid, ratio, cascade):
    cascade = sorted(cascade, reverse=True)
    budgets, counts = token_budgets(valid, 500, ratio, cascade)
    assert all(1 <= budget <= count for budget, count in zip(budgets, valid, strict=True))
    assert all(1 <= count <= max(budgets) for count in counts)
    assert list(counts) == sorted(counts, reverse=True)


def test_keeping_everything_keeps_the_valid_tokens_of_each_image():
    assert token_budgets([85, 40], 85, 1.0, (1.0, 1.0)) == ((85, 40), (85, 85))


@pytest.fixture
def scored():
    torch.manual_seed(0)
    levels = levels_of([(8, 8), (4, 4)], sizes=[(64, 64), (32, 64)])
    selector = TokenSelector(16, 2, 0.5, (1.0, 0.5))
    tokens = torch.randn(2, 80, 16)
    return selector, tokens, levels, *selector(tokens, levels, levels.padding_mask())


def test_layers_are_nested_prefixes_by_falling_score(scored):
    *_, logits, selection = scored
    first, second = selection.indices
    assert torch.equal(second, first[:, : selection.counts[1]])
    assert (selection.scores.diff(dim=1) <= 0).all()
    assert torch.equal(selection.scores[0], logits[0, first[0]].detach())


def test_padding_is_chosen_only_after_all_valid_tokens(scored):
    selector, tokens, levels, *_ = scored
    selector.keep_ratio, selector.cascade = 1.0, (1.0, 1.0)
    padding = levels.padding_mask()
    _, selection = selector(tokens, levels, padding)
    is_padding = padding.gather(1, selection.indices[0])
    assert not is_padding[1, :40].any()
    assert is_padding[1, 40:].all()


def test_the_choice_has_no_gradient_but_the_logits_do(scored):
    selector, *_, logits, selection = scored
    assert not selection.scores.requires_grad
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in selector.parameters())


def test_a_scale_of_zero_is_the_same_as_no_modulation():
    torch.manual_seed(0)
    levels, tokens = levels_of([(4, 4), (2, 2)], batch=1), torch.randn(1, 20, 8)
    modulated, plain = TokenSelector(8, 2, 0.5, (1.0,)), TokenSelector(8, 2, 0.5, (1.0,), None)
    assert plain.modulation_scales is None
    plain.scorer.load_state_dict(modulated.scorer.state_dict())
    torch.nn.init.zeros_(modulated.modulation_scales)
    torch.testing.assert_close(modulated.score(tokens, levels), plain.score(tokens, levels))


@pytest.mark.parametrize(("bias", "hidden"), [(1.0, True), (-1.0, False)])
def test_the_scorers_first_norm_hides_a_positive_factor_but_not_a_sign(bias, hidden):
    torch.manual_seed(0)
    levels, tokens = levels_of([(4, 4), (2, 2)], batch=1), torch.randn(1, 20, 8)
    selector = TokenSelector(8, 2, 0.5, (1.0,), None)
    torch.nn.init.constant_(selector.scorer.logit.bias, bias)
    plain = selector.score(tokens, levels)
    selector.modulation_scales = torch.nn.Parameter(torch.full((1,), 1e3))
    apart = (selector.score(tokens, levels) - plain).abs()
    assert (apart[:, :16].max() < 1e-4) == hidden
    assert apart[:, 16:].max() == 0


def test_one_level_has_no_modulation_scales():
    assert TokenSelector(8, 1, 0.5, (1.0,)).modulation_scales is None
    assert TokenSelector(8, 5, 0.5, (1.0,)).modulation_scales.shape == (4,)


def test_scores_stay_in_float32_under_autocast(scored):
    selector, tokens, levels, logits, _ = scored
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selector.score(tokens, levels), logits)


def test_kept_tokens_are_limited_by_the_images_budget():
    selection = SelectedTokens((), torch.zeros(0), (10, 4), (6, 10), (12, 20), ((4, 5),))
    assert selection.kept == ((6, 10), (4, 4))
