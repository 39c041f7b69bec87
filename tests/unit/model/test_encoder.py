"""The encoder: which tokens it touches, and what its switches remove or change."""

import dataclasses

import pytest
import torch

from focus_lab.model.encoder import Encoder, EncoderLayer
from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.token_selection import TokenSelector

WIDTH, SHAPES = 16, [(8, 8), (4, 4)]


def build(dual=True, **settings):
    torch.manual_seed(0)
    layers = [EncoderLayer(WIDTH, 4, 2, 2, 32, dual_attention=dual) for _ in range(2)]
    return Encoder(layers, dual_attention_tokens=6 if dual else None, **settings).eval()


@pytest.fixture
def scene():
    torch.manual_seed(1)
    levels = FeatureLevels.measure(
        [torch.zeros(2, 1, *shape) for shape in SHAPES], (64, 64), [(64, 64), (40, 64)]
    )
    tokens, positions = torch.randn(2, 80, WIDTH), torch.randn(2, 80, WIDTH)
    padding = levels.padding_mask()
    selection = TokenSelector(0.4, (1.0, 0.5)).select(torch.randn(2, 80), levels, padding)
    return (tokens, positions, levels, padding), selection, torch.nn.Linear(WIDTH, 3)


def touched(before, after):
    return (before != after).any(-1)


def test_only_the_tokens_within_the_budget_are_refined(scene):
    (tokens, *rest), selection, head = scene
    memory = build()(tokens, *rest, selection, head)
    for image, budget in enumerate(selection.budgets):
        expected = torch.zeros(80, dtype=torch.bool)
        expected[selection.indices[0][image, :budget]] = True
        assert torch.equal(touched(tokens[image], memory[image]), expected)
    assert selection.budgets[1] < selection.counts[0]


def test_tokens_that_the_cascade_drops_keep_their_last_value(scene):
    inputs, selection, head = scene
    encoder = build()
    memory = encoder(*inputs, selection, head)
    once = Encoder([encoder.layers[0]], dual_attention_tokens=6).eval()
    first = dataclasses.replace(
        selection, indices=selection.indices[:1], counts=selection.counts[:1]
    )
    after_one = once(*inputs, first, head)
    dropped = selection.indices[0][0, selection.counts[1] :]
    torch.testing.assert_close(memory[0, dropped], after_one[0, dropped])
    kept = selection.indices[1][0]
    assert touched(memory[0, kept], after_one[0, kept]).all()


def test_values_of_updated_tokens_change_the_second_layer_only(scene):
    inputs, selection, head = scene
    released, updated = build(), build(value_source="updated_tokens")
    a, b = released(*inputs, selection, head), updated(*inputs, selection, head)
    first_only = selection.indices[0][0, selection.counts[1] :]
    torch.testing.assert_close(a[0, first_only], b[0, first_only])
    assert touched(a[0], b[0])[selection.indices[1][0]].all()


def test_without_dual_attention_its_parameters_are_gone(scene):
    inputs, selection, head = scene
    plain = build(dual=False)
    assert not any("dual" in name for name, _ in plain.named_parameters())
    assert plain(*inputs, selection, head).isfinite().all()


def test_the_product_of_probabilities_chooses_other_tokens(scene):
    (tokens, *_), selection, head = scene
    scores = selection.scores - 3  # negative: the raw product turns the order round
    logits = build()._fine_grained(tokens[:, : scores.shape[1]], scores, head)
    likely = build(score_product="probabilities")._fine_grained(
        tokens[:, : scores.shape[1]], scores, head
    )
    assert logits.shape == likely.shape == (2, 6)
    assert not torch.equal(logits, likely)


def test_all_tokens_are_refined_without_a_selection(scene):
    (tokens, *rest), _, head = scene
    memory = build(dual=False)(tokens, *rest, None, head)
    assert touched(tokens, memory).all()


def test_every_parameter_learns(scene):
    inputs, selection, head = scene
    encoder = build().train()
    encoder(*inputs, selection, head).square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []
    assert head.weight.grad is None  # the choice of tokens has no gradient
