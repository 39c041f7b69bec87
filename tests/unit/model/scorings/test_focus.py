"""The released scoring: what modulation does, what learns, in which precision."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.scorings.focus import FocusSelector
from focus_lab.model.token_selection import TokensToScore


def given(tokens, shapes, sizes=None):
    """Tokens that are their own projection."""
    levels = FeatureLevels.measure(
        [torch.zeros(len(tokens), 1, *shape) for shape in shapes], (64, 64), sizes
    )
    padding = levels.padding_mask()
    return TokensToScore(tokens, levels, padding, lambda: tokens, (8, 16), ())


@pytest.fixture
def small():
    torch.manual_seed(0)
    return given(torch.randn(1, 20, 8), [(4, 4), (2, 2)])


def test_the_choice_has_no_gradient_but_the_logits_do():
    torch.manual_seed(0)
    selector = FocusSelector(16, 2, 0.5, (1.0, 0.5))
    inputs = given(torch.randn(2, 80, 16), [(8, 8), (4, 4)], [(64, 64), (32, 64)])
    logits, selection = selector(inputs)
    assert not selection.scores.requires_grad
    logits.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in selector.parameters())


def test_a_scale_of_zero_is_the_same_as_no_modulation(small):
    modulated = FocusSelector(8, 2, 0.5, (1.0,))
    plain = FocusSelector(8, 2, 0.5, (1.0,), modulation_range=None)
    assert plain.modulation_scales is None
    plain.scorer.load_state_dict(modulated.scorer.state_dict())
    torch.nn.init.zeros_(modulated.modulation_scales)
    torch.testing.assert_close(modulated.score(small), plain.score(small))


@pytest.mark.parametrize(("bias", "hidden"), [(1.0, True), (-1.0, False)])
def test_the_scorers_first_norm_hides_a_positive_factor_but_not_a_sign(small, bias, hidden):
    selector = FocusSelector(8, 2, 0.5, (1.0,), modulation_range=None)
    torch.nn.init.constant_(selector.scorer.logit.bias, bias)
    plain = selector.score(small)
    selector.modulation_scales = torch.nn.Parameter(torch.full((1,), 1e3))
    apart = (selector.score(small) - plain).abs()
    assert (apart[:, :16].max() < 1e-4) == hidden
    assert apart[:, 16:].max() == 0


def test_one_level_has_no_modulation_scales():
    assert FocusSelector(8, 1, 0.5, (1.0,)).modulation_scales is None
    assert FocusSelector(8, 5, 0.5, (1.0,)).modulation_scales.shape == (4,)


def test_scores_stay_in_float32_under_autocast(small):
    selector = FocusSelector(8, 2, 0.5, (1.0,))
    logits = selector.score(small)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selector.score(small), logits)
