"""The decoder: what queries may see, and how references carry gradients."""

import pytest
import torch

from focus_lab.model.decoder import Decoder, DecoderLayer
from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.feed_forward import Perceptron

WIDTH = 16


@pytest.fixture
def parts():
    torch.manual_seed(0)
    decoder = Decoder([DecoderLayer(WIDTH, 4, 2, 2, 32) for _ in range(3)], WIDTH, 10).eval()
    heads = [Perceptron((WIDTH, WIDTH, 4)) for _ in range(3)]
    levels = FeatureLevels.measure(
        [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 2, 2)], (32, 32), [(32, 32), (16, 32)]
    )
    inputs = (torch.randn(2, 5, WIDTH), torch.rand(2, 5, 4) * 0.5 + 0.2, torch.randn(2, 20, WIDTH))
    return decoder, heads, levels, inputs


def test_blocked_queries_do_not_influence_each_other(parts):
    decoder, heads, levels, (queries, references, memory) = parts
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    blocked[2:, :2] = True
    changed = queries.clone()
    changed[:, :2] += 1
    a = decoder(queries, references, memory, levels, levels.padding_mask(), heads, blocked)
    b = decoder(changed, references, memory, levels, levels.padding_mask(), heads, blocked)
    torch.testing.assert_close(a.states[-1][:, 2:], b.states[-1][:, 2:])
    assert not torch.allclose(a.states[-1][:, :2], b.states[-1][:, :2])


def test_padding_of_the_memory_is_never_read(parts):
    decoder, heads, levels, (queries, references, memory) = parts
    padding = levels.padding_mask()
    other = torch.where(padding[..., None], memory + 5, memory)
    a = decoder(queries, references, memory, levels, padding, heads)
    b = decoder(queries, references, other, levels, padding, heads)
    torch.testing.assert_close(a.states, b.states)


def test_references_reach_back_exactly_one_layer(parts):
    decoder, heads, levels, inputs = parts
    decoded = decoder(*inputs, levels, levels.padding_mask(), heads)
    assert not decoded.references[0].requires_grad
    decoded.references[2].sum().backward(retain_graph=True)
    assert heads[1].layers[0].weight.grad is not None
    assert heads[0].layers[0].weight.grad is None
    assert heads[2].layers[0].weight.grad is None


def test_a_head_of_zeros_leaves_references_in_place(parts):
    decoder, heads, levels, (queries, references, memory) = parts
    for head in heads:
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    decoded = decoder(queries, references, memory, levels, levels.padding_mask(), heads)
    for moved in decoded.references:
        torch.testing.assert_close(moved, references)
