"""Level shapes, masks and centres from host integers alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.model.feature_levels import FeatureLevels, flatten_levels, on_every_level

LENGTHS = st.integers(1, 300)


def measured(shapes, canvas, sizes, batch=1):
    maps = [torch.zeros(batch, 1, *shape) for shape in shapes]
    return FeatureLevels.measure(maps, canvas, sizes)


@given(
    canvas=st.tuples(LENGTHS, LENGTHS), shape=st.tuples(*[st.integers(1, 40)] * 2), data=st.data()
)
def test_the_mask_is_a_nearest_resize_by_the_integer_rule(canvas, shape, data):
    size = tuple(data.draw(st.integers(1, length)) for length in canvas)
    levels = measured([shape], canvas, [size])
    rows = [i * canvas[0] // shape[0] >= size[0] for i in range(shape[0])]
    columns = [i * canvas[1] // shape[1] >= size[1] for i in range(shape[1])]
    expected = [row or column for row in rows for column in columns]
    mask = levels.padding_mask()
    assert (expected if mask is not None else [False] * len(expected)) == (
        mask[0].tolist() if mask is not None else expected
    )
    assert levels.valid_counts == (expected.count(False),)


def test_the_mask_equals_torchs_nearest_interpolation():
    canvas, sizes, shapes = (96, 160), [(96, 123), (57, 160)], [(12, 20), (6, 10), (3, 5), (2, 3)]
    pixels = torch.ones(2, 1, *canvas)
    for mask, (height, width) in zip(pixels, sizes, strict=True):
        mask[:, :height, :width] = 0
    expected = torch.cat(
        [torch.nn.functional.interpolate(pixels, shape).flatten(1).bool() for shape in shapes],
        dim=1,
    )
    assert torch.equal(measured(shapes, canvas, sizes, 2).padding_mask(), expected)


def test_images_that_fill_the_canvas_are_not_masked():
    for sizes in (None, [(64, 48)] * 2):
        levels = measured([(8, 6), (4, 3)], (64, 48), sizes, batch=2)
        assert levels.padding_mask() is None
        assert levels.valid_ratios() is None
        assert levels.valid_counts == (60, 60)
        assert levels.centers().shape == (1, 60, 2)


def test_centres_are_shares_of_the_valid_image():
    levels = measured([(4, 4)], (32, 32), [(32, 16)])
    centers = levels.centers().view(4, 4, 2)
    assert centers[0, :2, 0].tolist() == [0.25, 0.75]
    assert centers[:, 0, 1].tolist() == [0.125, 0.375, 0.625, 0.875]
    assert centers[0, 2, 0] > 1


def test_points_return_to_shares_of_the_padded_level():
    levels = measured([(4, 4), (2, 2)], (32, 32), [(32, 16)])
    points = on_every_level(levels.centers(), levels.valid_ratios())
    assert points.shape == (1, 20, 2, 2)
    torch.testing.assert_close(points[0, 0, 0], torch.tensor([0.125, 0.125]))
    boxes = on_every_level(torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]), levels.valid_ratios())
    torch.testing.assert_close(boxes[0, 0, 0], torch.tensor([0.25, 0.5, 0.5, 1.0]))


def test_tokens_are_ordered_by_level_then_row_then_column():
    maps = [torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[[[6.0]]]])]
    assert flatten_levels(maps).flatten().tolist() == [0, 1, 2, 3, 4, 5, 6]
