"""Golden K: level masks, sine embeddings of tokens, embedding of boxes."""

import pytest
import torch

from focus_lab.model.feature_levels import FeatureLevels
from focus_lab.model.position import TokenPositions, box_embedding


@pytest.fixture
def padded(golden):
    fixture = golden("K_positions")
    maps = [torch.zeros(2, 1, *fixture.tensors[f"mask{level}"].shape[1:]) for level in range(4)]
    return fixture, FeatureLevels.measure(maps, (128, 160), fixture.config["sizes"])


def test_level_masks_are_nearest_resizes_of_the_pixel_mask(padded):
    fixture, levels = padded
    masks = levels.padding_mask().split(levels.lengths, dim=1)
    for level, mask in enumerate(masks):
        assert torch.equal(mask, fixture.tensors[f"mask{level}"].flatten(1).bool())


@pytest.mark.parametrize(
    ("suffix", "temperature", "offset"), [("t10000", 10000.0, -0.5), ("t20", 20.0, 0.0)]
)
def test_token_positions_match_the_release_where_the_image_is(padded, suffix, temperature, offset):
    fixture, levels = padded
    sines = TokenPositions(fixture.config["d"], 4, temperature, offset).sine(levels)
    for level, sine in enumerate(sines):
        image = ~fixture.tensors[f"mask{level}"].bool()
        expected = fixture.tensors[f"pos{level}_{suffix}"].permute(0, 2, 3, 1)
        torch.testing.assert_close(sine[image], expected[image], rtol=0, atol=2e-6)
        assert sine.isfinite().all()


def test_the_embedding_of_boxes_matches_the_release(golden):
    fixture = golden("K_positions")
    embedded = box_embedding(fixture.tensors["boxes"], fixture.config["d"])
    torch.testing.assert_close(embedded, fixture.tensors["box_embedding"], rtol=0, atol=2e-6)
