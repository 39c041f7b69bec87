from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.data.foreground import covered_cells, foreground_share, token_share


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 4, 8]))
def test_cells_are_those_whose_centre_lies_in_a_box(seed, stride):
    rng = np.random.default_rng(seed)
    boxes = np.sort(rng.uniform(-5, 70, (3, 2, 2)), axis=1).reshape(3, 4)
    rows, columns = 9, 7
    y, x = np.mgrid[:rows, :columns] * stride + stride / 2
    expected = np.zeros((rows, columns), dtype=bool)
    for left, top, right, bottom in boxes:
        expected |= (x >= left) & (x < right) & (y >= top) & (y < bottom)
    np.testing.assert_array_equal(covered_cells(boxes, rows, columns, stride), expected)


def test_no_box_covers_nothing_and_the_whole_image_everything():
    assert token_share(np.zeros((0, 4)), 64, 64) == 0.0
    assert token_share(np.array([[0, 0, 64, 64]]), 64, 64) == 1.0


def test_tokens_of_all_levels_count_alike():
    # 8 x 8 and 4 x 4 tokens; the left quarter holds 2 of 8 and 1 of 4 columns.
    assert token_share(np.array([[0, 0, 16, 64]]), 64, 64, strides=(8, 16)) == pytest.approx(0.25)
    # Sides that are no multiple of the stride have one more token, whose centre is outside.
    assert token_share(np.array([[0, 0, 65, 65]]), 65, 65, strides=(64,)) == pytest.approx(0.25)


def test_the_share_of_a_data_set_is_the_mean_of_its_images(
    write_folder, make_image, make_annotation
):
    from focus_lab.data.dataset import build_dataset

    spec = write_folder(
        [make_image(1, 64, 64), make_image(2, 64, 64)],
        [make_annotation(1, 1, box=(0, 0, 64, 64)), make_annotation(2, 2, iscrowd=1)],
    )
    dataset = build_dataset(spec, "val")
    assert foreground_share(dataset) == 0.5
    assert foreground_share(dataset, (8,), lambda height, width: (128, 128)) == 0.5
