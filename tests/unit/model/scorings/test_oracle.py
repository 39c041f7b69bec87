"""Scores by the ground truth: foreground first, then by nearness."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.foreground_targets import ForegroundRule
from focus_lab.model.scorings.oracle import OracleSelector
from focus_lab.model.token_selection import TokensToScore

ANY = ForegroundRule("side", size_ranges=((-1.0, 1e6), (-1.0, 1e6)), center_radius=None)


def scores(*images, rule=ANY, sizes=None):
    """Scores [B, 20] of 32 x 32 images at strides 8 and 16, from boxes (cx, cy, w, h)."""
    maps = [torch.zeros(len(images), 1, *shape) for shape in ((4, 4), (2, 2))]
    targets = [
        {"labels": torch.zeros(len(boxes)).long(), "boxes": torch.tensor(boxes).reshape(-1, 4)}
        for boxes in images
    ]
    levels = FeatureLevels.measure(maps, (32, 32), sizes)
    features = torch.zeros(len(images), 20, 4)
    return OracleSelector(rule, 0.5, (1.0,)).score(
        TokensToScore(
            features, levels, None, lambda: features, (8, 16),
            tuple(sizes or [(32, 32)] * len(images)), targets,
        )
    )  # fmt: skip


def test_foreground_is_1_and_more_the_nearer_to_the_centre():
    # The box spans 8 .. 24 in x and y. Level 0's tokens sit at 4, 12, 20, 28, level 1's at 8, 24:
    # 12 and 20 are half a half side from its centre, 4 and 28 one and a half; 8 and 24 on a side.
    found = scores([(0.5, 0.5, 0.5, 0.5)])[0]
    near, far, side = 1 + 1 / 1.5, 1 / 2.5, 1 / 2
    inner, outer = [far, near, near, far], [far] * 4
    assert found.tolist() == pytest.approx([*outer, *inner, *inner, *outer, *[side] * 4])


def test_a_token_of_the_wrong_level_is_background():
    rule = ForegroundRule("side", size_ranges=((-1.0, 10.0), (10.0, 1e6)), center_radius=None)
    found = scores([(0.5, 0.5, 1.0, 1.0)], rule=rule)[0]  # farthest sides are 20 px and more
    assert (found[:16] < 1).all()
    assert (found[16:] > 1).all()


def test_the_nearest_box_counts_and_images_without_boxes_score_nothing():
    small, large = (0.125, 0.125, 0.25, 0.25), (0.75, 0.75, 0.5, 0.5)
    both, none, one = scores([small, large], [], [large])
    assert both[0] == 2  # the centre of the small box
    assert both[15] == one[15]
    assert one[15] == pytest.approx(1 + 1 / 1.5)
    assert not none.any()


def test_boxes_are_shares_of_the_valid_image():
    padded = scores([(0.5, 0.5, 0.5, 0.5)], sizes=[(16, 16)])[0, :16].view(4, 4)
    # The box spans 4 .. 12: tokens at 4 and 12 lie on its sides, and 4 px are its half side.
    assert padded[0, 0] == padded[1, 1] == 0.5
    assert padded[3, 3] == pytest.approx(1 / 6)
