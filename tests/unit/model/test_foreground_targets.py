from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.model.foreground_targets import default_size_ranges, foreground_labels

OPEN = ((-1.0, 999_999.0),)


def target(*boxes):
    return {
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


def by_definition(targets, sizes, level_shapes, strides, size_ranges, center_radius):
    """Token by token and box by box, as the rule is written."""
    rows = []
    for each, (image_height, image_width) in zip(targets, sizes, strict=True):
        row = []
        for (height, width), stride, (low, high) in zip(
            level_shapes, strides, size_ranges, strict=True
        ):
            for y in range(height):
                for x in range(width):
                    px, py = x * stride + stride // 2, y * stride + stride // 2
                    found = False
                    for cx, cy, w, h in each["boxes"].double().tolist():
                        cx, cy = cx * image_width, cy * image_height
                        w, h = w * image_width, h * image_height
                        sides = (
                            px - (cx - w / 2),
                            py - (cy - h / 2),
                            cx + w / 2 - px,
                            cy + h / 2 - py,
                        )
                        near = center_radius is None or (
                            max(abs(px - cx), abs(py - cy)) < center_radius * stride
                        )
                        found |= min(sides) > 0 and low < max(sides) <= high and near
                    row.append(found)
        rows.append(row)
    return torch.tensor(rows)


unit = st.floats(0.0, 1.0, width=32)
box = st.tuples(unit, unit, unit, unit)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(box, max_size=3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([None, 0.7, 1.5]),
)
def test_labels_follow_the_definition_for_any_number_of_levels(boxes, num_levels, radius):
    targets = [target(*rows) for rows in boxes]
    for each in targets:
        each["boxes"] = each["boxes"].double()  # so that both sides round alike
    sizes = [(120 - 10 * image, 90 + 20 * image) for image in range(len(targets))]
    strides = [8 * 2**level for level in range(num_levels)]
    shapes = [(-(-120 // stride), -(-130 // stride)) for stride in strides]
    ranges = tuple((low / 4, high / 4) for low, high in default_size_ranges(num_levels))
    settings_of_labels = (sizes, shapes, strides, ranges, radius)
    labels = foreground_labels(targets, *settings_of_labels)
    assert torch.equal(labels, by_definition(targets, *settings_of_labels))


@pytest.mark.parametrize("num_levels", range(1, 7))
def test_default_size_ranges_touch_and_cover_everything(num_levels):
    ranges = default_size_ranges(num_levels)
    assert len(ranges) == num_levels
    assert ranges[0][0] == -1
    assert ranges[-1][1] == 999_999
    assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_a_batch_without_boxes_has_no_foreground():
    labels = foreground_labels([target(), target()], [(32, 32)] * 2, [(4, 4)], [8], OPEN)
    assert labels.shape == (2, 16)
    assert labels.dtype == torch.bool
    assert not labels.any()


def test_an_image_without_boxes_has_no_foreground_beside_one_with_boxes():
    full = target((0.5, 0.5, 1.0, 1.0))
    labels = foreground_labels([target(), full], [(32, 32)] * 2, [(4, 4)], [8], OPEN)
    assert not labels[0].any()
    assert labels[1].all()


def test_tokens_on_a_side_are_outside():
    # Cell centres are at 4, 12, 20, 28; the box spans 4 .. 20 in x and 0 .. 32 in y.
    labels = foreground_labels([target((0.375, 0.5, 0.5, 1.0))], [(32, 32)], [(4, 4)], [8], OPEN)
    assert labels.view(4, 4).any(dim=0).tolist() == [False, True, False, False]


def test_boxes_are_shares_of_the_valid_image_not_of_the_padding():
    full = target((0.5, 0.5, 1.0, 1.0))
    labels = foreground_labels([full], [(16, 24)], [(4, 4)], [8], OPEN).view(4, 4)
    assert labels[:2, :3].all()
    assert labels.sum() == 6


def test_center_radius_keeps_tokens_near_the_centre():
    full = target((0.5, 0.5, 1.0, 1.0))
    labels = foreground_labels([full], [(64, 64)], [(8, 8)], [8], OPEN, center_radius=1.0)
    assert labels.view(8, 8)[3:5, 3:5].all()
    assert labels.sum() == 4
