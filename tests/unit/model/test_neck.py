"""The neck: level counts, strides and sizes."""

import pytest
import torch

from focus_lab.model.neck import Neck

FEATURES = [torch.randn(1, 4, 13, 9), torch.randn(1, 6, 7, 5), torch.randn(1, 8, 4, 3)]


@pytest.mark.parametrize(
    ("count", "strides", "shapes"),
    [
        (1, (32,), [(4, 3)]),
        (2, (16, 32), [(7, 5), (4, 3)]),
        (3, (8, 16, 32), [(13, 9), (7, 5), (4, 3)]),
        (5, (8, 16, 32, 64, 128), [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1)]),
    ],
)
def test_levels_are_the_coarsest_features_and_halves_on_top(count, strides, shapes):
    neck = Neck((4, 6, 8), (8, 16, 32), 16, count, 8)
    levels = neck(FEATURES)
    assert neck.strides == strides
    assert [tuple(level.shape) for level in levels] == [(1, 16, *shape) for shape in shapes]


def test_the_first_extra_level_comes_from_the_raw_feature():
    neck = Neck((4, 6, 8), (8, 16, 32), 16, 5, 8)
    assert neck.extra[0][0].in_channels == 8
    assert neck.extra[1][0].in_channels == 16
