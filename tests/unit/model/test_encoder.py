"""The encoder: which tokens it touches, and what its switches remove or change."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.model import deformable_attention
from focus_lab.model.encoder import Encoder, EncoderLayer, EncoderTokens
from focus_lab.model.feature_levels import FeatureLevels, on_every_level
from focus_lab.model.output import SelectedTokens
from focus_lab.model.token_selection import TokenSelector

WIDTH, SHAPES = 16, [(8, 8), (4, 4)]


def build(dual=True, deformable_first=False, **settings):
    torch.manual_seed(0)
    layers = [
        EncoderLayer(WIDTH, 4, 2, 2, 32, dual_attention=dual, deformable_first=deformable_first)
        for _ in range(2)
    ]
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


def test_the_category_score_alone_chooses_as_if_all_were_foreground(scene):
    (tokens, *_), selection, head = scene
    tokens, scores = tokens[:, :20], selection.scores[:, :20]
    category = head(tokens).amax(-1)
    alone = build(score_product="category")._fine_grained(tokens, None, head)
    assert torch.equal(alone, category.topk(6, dim=1).indices)
    equal = build()._fine_grained(tokens, torch.ones_like(scores), head)
    assert torch.equal(alone, equal)
    assert not torch.equal(alone, build()._fine_grained(tokens, scores, head))


def test_dual_attention_without_a_foreground_score_serves_all_tokens_too(scene):
    (tokens, *rest), _, head = scene
    memory = build(score_product="category")(tokens, *rest, None, head)
    assert touched(tokens, memory).all()
    plain = build(score_product="category")
    plain.dual_attention_tokens = 7
    assert not torch.equal(plain(tokens, *rest, None, head), memory)


def test_deformable_attention_may_come_first(scene):
    """By hand: norm of deformable, self-attention of tokens chosen then, feed-forward."""
    inputs, _, head = scene
    layer = build(deformable_first=True).layers[0]
    count, (tokens, positions, levels, padding) = 9, inputs
    taken = tokens[:, :count]
    constants = EncoderTokens(
        positions[:, :count],
        on_every_level(levels.centers(), levels.valid_ratios())[:, :count],
        None,
    )
    value = deformable_attention.project_values([layer.deformable_attention], tokens, padding)[0]
    sampling = (value, levels.shapes, levels.widths_heights())
    asked = []

    def choose(given):
        asked.append(given)
        return head(given).amax(-1).topk(4, dim=1).indices

    found = layer(taken, constants, choose, *sampling)
    attended = layer.deformable_attention(
        taken + constants.positions, constants.references, *sampling
    )
    expected = layer.deformable_attention_norm(taken + attended)
    assert torch.equal(asked[0], expected)
    for image, chosen in enumerate(choose(expected)):
        rows, where = expected[image, chosen][None], constants.positions[image, chosen][None]
        expected = expected.clone()
        expected[image, chosen] = layer.dual_attention_norm(
            rows + layer.dual_attention(rows, where)
        )[0]
    expected = layer.feed_forward_norm(expected + layer.feed_forward(expected))
    torch.testing.assert_close(found, expected)
    layer.deformable_first = False
    assert not torch.allclose(layer(taken, constants, choose, *sampling), expected)


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


def test_a_rising_cascade_finds_newcomers_as_the_neck_left_them(scene):
    inputs, selection, head = scene
    tokens, encoder = inputs[0], build()
    counts = selection.counts[::-1]
    rising = dataclasses.replace(selection, indices=selection.indices[::-1], counts=counts)
    memory = encoder(*inputs, rising, head)
    few, many = rising.indices[0][0], rising.indices[1][0]
    assert len(few) < len(many) == rising.budgets[0]
    assert touched(tokens[0], memory[0]).nonzero().flatten().tolist() == sorted(many.tolist())

    # By hand: the first layer alone on the few, then the second alone on what that gives.
    def alone(number, start, taken):
        layer = Encoder([encoder.layers[number]], dual_attention_tokens=6).eval()
        only = dataclasses.replace(
            selection, indices=(taken,), counts=(taken.shape[1],),
            scores=selection.scores[:, : taken.shape[1]],
        )  # fmt: skip
        values = deformable_attention.project_values
        neck = values([encoder.layers[number].deformable_attention], tokens, inputs[3])
        with pytest.MonkeyPatch.context() as patch:
            # Values come from the neck in every layer, also when its tokens do not.
            patch.setattr("focus_lab.model.encoder.project_values", lambda *_: neck)
            return layer(start, *inputs[1:], only, head)

    after_first = alone(0, tokens, rising.indices[0])
    torch.testing.assert_close(alone(1, after_first, rising.indices[1]), memory)


def test_values_of_a_rising_cascade_may_be_updated_tokens_too(scene):
    inputs, selection, head = scene
    rising = dataclasses.replace(
        selection, indices=selection.indices[::-1], counts=selection.counts[::-1]
    )
    released, updated = build(), build(value_source="updated_tokens")
    a, b = released(*inputs, rising, head), updated(*inputs, rising, head)
    everybody = rising.indices[1][0]
    # All that look at a token which the first layer refined; most do.
    assert touched(a[0], b[0])[everybody].float().mean() > 0.8
    rest = torch.ones(80, dtype=torch.bool)
    rest[everybody] = False
    assert torch.equal(b[0, rest], inputs[0][0, rest])


@given(st.lists(st.sampled_from([4, 9, 20, 33]), min_size=1, max_size=5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_each_layer_refines_its_own_prefix_whatever_the_order_of_counts(counts, updated):
    """Layers that add one to what they get: a token counts the layers that took it."""
    torch.manual_seed(0)
    levels = FeatureLevels.measure([torch.zeros(2, 1, *s) for s in SHAPES], (64, 64), None)
    tokens, positions = torch.zeros(2, 80, WIDTH), torch.zeros(1, 80, WIDTH)
    order = torch.rand(2, 80).argsort(dim=1)[:, : max(counts)]
    selection = SelectedTokens(
        indices=tuple(order[:, :count] for count in counts),
        scores=torch.zeros(order.shape),
        counts=tuple(counts),
        budgets=(20, 40),
        valid_counts=(80, 80),
        level_shapes=tuple(SHAPES),
    )
    source = "updated_tokens" if updated else "neck_features"
    layers = [CountingLayer(WIDTH, 4, 2, 2, 8, dual_attention=False) for _ in counts]
    encoder = Encoder(layers, dual_attention_tokens=None, value_source=source)
    memory = encoder(tokens, positions, levels, None, selection, torch.nn.Identity())
    expected = torch.zeros(2, 80)
    for image, budget in enumerate(selection.budgets):
        for indices in selection.indices:
            expected[image, indices[image, :budget]] += 1
    assert torch.equal(memory[:, :, 0], expected)


class CountingLayer(EncoderLayer):
    def forward(self, tokens, *_):
        return tokens + 1
