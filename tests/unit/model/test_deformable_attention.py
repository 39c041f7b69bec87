"""The deformable attention block: its start, its value projections."""

import pytest
import torch

from focus_lab.model.deformable_attention import DeformableAttention, project_values
from focus_lab.model.initialization import initialize_transformer
from focus_lab.ops import library_state

STATE = library_state()
SHAPES = ((4, 4), (2, 2))
WIDTHS_HEIGHTS = torch.tensor([[4.0, 4.0], [2.0, 2.0]])


def test_heads_start_in_their_own_direction_and_points_at_growing_distance():
    block = DeformableAttention(16, 8, 2, 3)
    offsets = block.sampling_offsets.bias.view(8, 2, 3, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets.abs().amax(-1)[0, 0], torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(offsets[2, 0, 0], torch.tensor([0.0, 1.0]))
    assert block.sampling_offsets.weight.abs().max() == 0
    assert block.attention_weights.weight.abs().max() == 0


def test_initializing_a_transformer_keeps_the_blocks_own_start():
    parts = torch.nn.Sequential(torch.nn.Linear(16, 16), DeformableAttention(16, 4, 2, 2))
    expected = parts[1].sampling_offsets.bias.clone()
    initialize_transformer(parts)
    assert torch.equal(parts[1].sampling_offsets.bias, expected)
    assert parts[1].sampling_offsets.weight.abs().max() == 0
    assert parts[0].weight.abs().max() <= (6 / 32) ** 0.5


def test_one_product_for_several_layers_equals_one_for_each():
    torch.manual_seed(0)
    blocks = [DeformableAttention(16, 4, 2, 2) for _ in range(3)]
    tokens, padding = torch.randn(2, 20, 16), torch.rand(2, 20) < 0.3
    together = project_values(blocks, tokens, padding)
    for block, value in zip(blocks, together, strict=True):
        torch.testing.assert_close(value, project_values([block], tokens, padding)[0])
        assert value[padding].abs().max() == 0
        assert value.shape == (2, 20, 4, 4)


def test_a_point_reference_that_all_levels_share_may_have_one_level():
    block = DeformableAttention(16, 4, 2, 2)
    value = project_values([block], torch.randn(2, 20, 16), None)[0]
    queries, points = torch.randn(2, 5, 16), torch.rand(1, 5, 1, 2)
    shared = block(queries, points, value, SHAPES, WIDTHS_HEIGHTS)
    apart = block(queries, points.expand(2, 5, 2, 2), value, SHAPES, WIDTHS_HEIGHTS)
    torch.testing.assert_close(shared, apart)


def attend(block, queries, references, tokens, dtype=None):
    """Output and the gradients of queries, tokens and all parameters."""
    leaves = [queries.clone().requires_grad_(), tokens.clone().requires_grad_()]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        value = project_values([block], leaves[1], None)[0]
        output = block(leaves[0], references, value, SHAPES, WIDTHS_HEIGHTS)
    gradients = torch.autograd.grad(output.float().sum(), [*leaves, *block.parameters()])
    return [output.detach(), *gradients]


@pytest.mark.skipif(not STATE.ok, reason=f"compiled operators: {STATE.reason}")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize(("batch", "levels"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_both_implementations_give_the_same_outputs_and_gradients(
    batch, levels, coordinates, dtype
):
    torch.manual_seed(0)
    block = DeformableAttention(16, 4, 2, 2)
    torch.nn.init.normal_(block.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(block.attention_weights.weight)
    # Drawn apart, so that hardly a sample lies at a pixel's centre, where the derivative steps.
    references = torch.rand(batch, 7, levels, coordinates) * 0.8 + 0.1
    queries, tokens = torch.randn(2, 7, 16), torch.randn(2, 20, 16)
    expected = attend(block, queries, references, tokens, dtype)
    block.implementation = "compiled"
    actual = attend(block, queries, references, tokens, dtype)
    tolerance = 1e-5 if dtype is None else 2e-2
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
