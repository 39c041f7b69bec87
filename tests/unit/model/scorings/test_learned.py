"""Scorers that learn something else than the released one."""

import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.scorings.decoder_attention import DecoderAttentionSelector
from focus_lab.model.scorings.objectness import ObjectnessSelector
from focus_lab.model.token_selection import TokensToScore


def given(tokens):
    levels = FeatureLevels.measure(
        [torch.zeros(len(tokens), 1, 4, 4), torch.zeros(len(tokens), 1, 2, 2)], (32, 32), None
    )
    return TokensToScore(tokens, levels, None, lambda: tokens, (8, 16), ())


def test_objectness_looks_at_each_token_alone():
    torch.manual_seed(0)
    selector, tokens = ObjectnessSelector(8, 0.5, (1.0,)), torch.randn(2, 20, 8)
    changed = tokens.clone()
    changed[:, 3] += 1
    apart = (selector.score(given(tokens)) - selector.score(given(changed))).abs() > 0
    assert apart.any(dim=0).nonzero().flatten().tolist() == [3]


def test_the_scorer_of_sparse_detr_shares_one_mean_over_all_levels():
    torch.manual_seed(0)
    selector, tokens = DecoderAttentionSelector(8, 0.5, (1.0,)), torch.randn(1, 20, 8)
    changed = tokens.clone()
    changed[:, 19] += torch.randn(8)  # on the coarser level
    apart = (selector.score(given(tokens)) - selector.score(given(changed))).abs()
    assert (apart > 0).all()


def test_both_learn_and_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    inputs = given(torch.randn(2, 20, 8))
    for selector in (
        ObjectnessSelector(8, 0.5, (1.0,)),
        DecoderAttentionSelector(8, 0.5, (1.0,)),
    ):
        logits, selection = selector(inputs)
        assert torch.equal(selection.scores[0], logits[0, selection.indices[0][0]])
        logits.square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in selector.parameters())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(selector.score(inputs), logits)
