"""Sine position embeddings."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.position import TokenPositions, box_embedding, sine_embedding

MAPS = [torch.zeros(2, 1, 4, 6), torch.zeros(2, 1, 2, 3)]


def test_an_image_that_is_not_padded_has_the_embedding_of_its_own_grid():
    positions = TokenPositions(16, 2, 20.0, 0.0)
    padded = FeatureLevels.measure(MAPS, (32, 48), [(32, 48), (32, 24)])
    plain = FeatureLevels.measure(MAPS, (32, 48), None)
    torch.testing.assert_close(positions(padded)[:1], positions(plain))


def test_padding_does_not_move_the_embedding_of_the_image():
    positions = TokenPositions(16, 1, 10000.0, -0.5)
    padded = FeatureLevels.measure([torch.zeros(1, 1, 4, 6)], (32, 48), [(16, 24)])
    alone = FeatureLevels.measure([torch.zeros(1, 1, 2, 3)], (16, 24), None)
    inside = positions.sine(padded)[0][:, :2, :3]
    torch.testing.assert_close(inside, positions.sine(alone)[0])


def test_the_level_embedding_is_added_and_learns():
    positions = TokenPositions(8, 2, 20.0, 0.0)
    levels = FeatureLevels.measure(MAPS, (32, 48), None)
    out = positions(levels)
    assert out.shape == (1, 30, 8)
    difference = out[0, :24] - positions.sine(levels)[0].flatten(1, 2)[0]
    torch.testing.assert_close(difference, positions.level_embedding[0].expand(24, -1))
    out.sum().backward()
    assert positions.level_embedding.grad.tolist() == [[24.0] * 8, [6.0] * 8]


@pytest.mark.parametrize("temperature", [20.0, 10000.0])
def test_channels_alternate_between_sine_and_cosine(temperature):
    out = sine_embedding(torch.tensor([0.3]), 4, temperature)[0]
    slow = 0.3 / temperature**0.5
    expected = torch.tensor([0.3, 0.3, slow, slow])
    torch.testing.assert_close(out[::2], expected[::2].sin())
    torch.testing.assert_close(out[1::2], expected[1::2].cos())


def test_boxes_are_embedded_in_the_order_y_x_w_h():
    one, other = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.2, 0.1, 0.3, 0.4]])
    a, b = box_embedding(one, 8)[0].view(4, 4), box_embedding(other, 8)[0].view(4, 4)
    torch.testing.assert_close(a[[1, 0, 2, 3]], b)
