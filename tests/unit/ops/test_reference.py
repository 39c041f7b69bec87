"""The plain implementation of deformable attention: the definition, checked against loops."""

import math

import pytest
import torch

from focus_lab.ops import deformable_attention

SHAPES = ((3, 5), (2, 2))
TOKENS = 19


def random_inputs(batch=2, queries=3, heads=2, channels=4, points=2, dtype=torch.float64):
    torch.manual_seed(0)
    value = torch.randn(batch, TOKENS, heads, channels, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, len(SHAPES), points, dtype=dtype)
    return value, locations, weights


def pixel(level_map, row, column):
    height, width = level_map.shape[:2]
    inside = 0 <= row < height and 0 <= column < width
    return level_map[row, column] if inside else torch.zeros_like(level_map[0, 0])


def bilinear(level_map, x, y):
    """level_map [h, w, D] at (x, y) in [0, 1], zero outside."""
    column, row = x * level_map.shape[1] - 0.5, y * level_map.shape[0] - 0.5
    left, top = math.floor(column), math.floor(row)
    right_share, low_share = column - left, row - top
    return (
        pixel(level_map, top, left) * (1 - low_share) * (1 - right_share)
        + pixel(level_map, top, left + 1) * (1 - low_share) * right_share
        + pixel(level_map, top + 1, left) * low_share * (1 - right_share)
        + pixel(level_map, top + 1, left + 1) * low_share * right_share
    )


def test_it_equals_a_loop_over_every_sample():
    value, locations, weights = random_inputs()
    maps = [
        part.unflatten(1, shape)
        for part, shape in zip(value.split([15, 4], dim=1), SHAPES, strict=True)
    ]
    expected = torch.zeros(2, 3, 2, 4, dtype=torch.float64)
    for image, query, head, level, point in torch.cartesian_prod(
        *(torch.arange(size) for size in weights.shape)
    ).tolist():
        where = (image, query, head, level, point)
        x, y = locations[where].tolist()
        expected[image, query, head] += weights[where] * bilinear(
            maps[level][image, :, :, head], x, y
        )
    output = deformable_attention(value, SHAPES, locations, weights)
    torch.testing.assert_close(output, expected.flatten(2))


def test_gradients_are_those_of_the_sum():
    inputs = [x.requires_grad_() for x in random_inputs(batch=1, queries=2, channels=2)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: deformable_attention(value, SHAPES, locations, weights),
        inputs,
    )


@pytest.mark.parametrize("coordinate", [-1.0, 2.0, 1e6, -1e6])
def test_samples_outside_the_level_count_as_zero(coordinate):
    value, locations, weights = random_inputs()
    output = deformable_attention(value, SHAPES, torch.full_like(locations, coordinate), weights)
    assert output.abs().max() == 0


def test_memory_layout_does_not_matter():
    value, locations, weights = random_inputs()
    expected = deformable_attention(value, SHAPES, locations, weights)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (value, locations, weights)]
    torch.testing.assert_close(deformable_attention(strided[0], SHAPES, *strided[1:]), expected)


def test_values_of_16_bits_are_summed_in_float32():
    value, locations, weights = random_inputs(dtype=torch.float32)
    rounded = value.to(torch.bfloat16)
    output = deformable_attention(rounded, SHAPES, locations, weights)
    exact = deformable_attention(rounded.float(), SHAPES, locations, weights)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, exact.to(torch.bfloat16))


def test_a_pyramid_of_another_size_is_refused():
    value, locations, weights = random_inputs()
    with pytest.raises(ValueError, match="19 tokens are needed"):
        deformable_attention(value[:, 1:], SHAPES, locations, weights)


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(ValueError, match="got 'magic'; one of reference"):
        deformable_attention(
            random_inputs()[0], SHAPES, *random_inputs()[1:], implementation="magic"
        )
