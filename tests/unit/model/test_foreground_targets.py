import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from focus_lab.model.foreground_targets import (
    ForegroundRule,
    default_size_ranges,
    foreground_labels,
    foreground_rule,
    one_level_only,
    overlapping_size_ranges,
)
from focus_lab.specs.model import ModelSpec

OPEN = ((-1.0, 999_999.0),)


def target(*boxes):
    return {
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
    }


def by_definition(targets, sizes, level_shapes, strides, size_ranges, center_radius, kind="side"):
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
                    found = 0.0
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
                        off = max(abs(px - cx), abs(py - cy))
                        distance = off if kind == "paper" else max(sides)
                        if min(sides) > 0 and low < distance <= high and near:
                            offset = math.hypot((px - cx) / (w / 2), (py - cy) / (h / 2))
                            found = max(found, 1 - offset / 2 if kind == "soft" else 1.0)
                    row.append(found)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


unit = st.floats(0.0, 1.0, width=32)
box = st.tuples(unit, unit, unit, unit)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.lists(box, max_size=3), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([None, 0.7, 1.5]),
    st.sampled_from(["side", "paper", "soft"]),
)
def test_labels_follow_the_definition_for_any_number_of_levels(boxes, num_levels, radius, kind):
    targets = [target(*rows) for rows in boxes]
    for each in targets:
        each["boxes"] = each["boxes"].double()  # so that both sides round alike
    sizes = [(120 - 10 * image, 90 + 20 * image) for image in range(len(targets))]
    strides = [8 * 2**level for level in range(num_levels)]
    shapes = [(-(-120 // stride), -(-130 // stride)) for stride in strides]
    ranges = tuple((low / 4, high / 4) for low, high in default_size_ranges(num_levels))
    settings_of_labels = (sizes, shapes, strides, ranges, radius, kind)
    labels = foreground_labels(targets, *settings_of_labels)
    assert labels.dtype == (torch.float64 if kind == "soft" else torch.bool)
    expected = by_definition(targets, *settings_of_labels)
    torch.testing.assert_close(labels.double(), expected, rtol=0, atol=1e-6)


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


def test_the_papers_ranges_overlap_half_of_the_one_before():
    assert overlapping_size_ranges(4) == (
        (-1.0, 64.0),
        (32.0, 128.0),
        (80.0, 256.0),
        (168.0, 999_999.0),
    )
    for (low, high), (begin, _) in pairwise(overlapping_size_ranges(4)):
        assert high - begin == (high - max(low, 0)) / 2


def test_the_papers_distance_is_the_larger_one_to_the_centre():
    # The box spans 0 .. 64 in x and 8 .. 56 in y, its centre is at (32, 32); tokens sit at 4, 12,
    # ..., 60. The farthest side is at least 36 away from each, the centre at most 28.
    box = target((0.5, 0.5, 1.0, 0.75))
    near = ((-1.0, 13.0),)
    assert not foreground_labels([box], [(64, 64)], [(8, 8)], [8], near).any()
    labels = foreground_labels([box], [(64, 64)], [(8, 8)], [8], near, kind="paper").view(8, 8)
    assert labels.nonzero().tolist() == [[y, x] for y in range(2, 6) for x in range(2, 6)]
    # 12 < distance <= 20 is a frame; the row at y = 4 is outside of the box.
    frame = foreground_labels([box], [(64, 64)], [(8, 8)], [8], ((12.0, 20.0),), kind="paper")
    assert frame.view(8, 8).long().tolist() == [
        [0] * 8,
        [0, 1, 1, 1, 1, 1, 1, 0],
        *[[0, 1, 0, 0, 0, 0, 1, 0]] * 4,
        [0, 1, 1, 1, 1, 1, 1, 0],
        [0] * 8,
    ]


def test_soft_labels_fall_from_the_centre_to_the_corners():
    # Tokens at 4, 12, 20, 28; the box spans 0 .. 24, its centre is a token, its half side is 12.
    box = target((0.375, 0.375, 0.75, 0.75))
    labels = foreground_labels([box], [(32, 32)], [(4, 4)], [8], OPEN, kind="soft").view(4, 4)
    side, corner = 1 - (8 / 12) / 2, 1 - math.hypot(8 / 12, 8 / 12) / 2
    expected = [[corner, side, corner], [side, 1, side], [corner, side, corner]]
    torch.testing.assert_close(labels[:3, :3], torch.tensor(expected))
    assert not labels[3].any()
    assert not labels[:, 3].any()


def test_of_several_boxes_the_largest_soft_label_counts():
    small, large = (0.125, 0.125, 0.25, 0.25), (0.5, 0.5, 1.0, 1.0)
    both = foreground_labels([target(large, small)], [(32, 32)], [(4, 4)], [8], OPEN, kind="soft")
    alone = foreground_labels([target(large)], [(32, 32)], [(4, 4)], [8], OPEN, kind="soft")
    assert both[0, 0] == 1
    assert alone[0, 0] < 0.5
    assert torch.equal(both[0, 1:], alone[0, 1:])


def test_a_smaller_limit_of_the_finest_level_halves_all_the_others():
    assert default_size_ranges(4, 16.0) == ((-1, 16), (16, 32), (32, 64), (64, 999_999))
    assert overlapping_size_ranges(4, 16.0) == ((-1, 16), (8, 32), (20, 64), (42, 999_999))
    spec = ModelSpec.model_validate({"foreground_targets": {"finest_limit": 16.0}})
    assert foreground_rule(spec).size_ranges == default_size_ranges(4, 16.0)
    # The released limit is not written: what was trained before keeps its fingerprint.
    assert "finest_limit" not in ModelSpec().model_dump()["foreground_targets"]
    ranges = [(0.0, 1.0)] * 4
    with pytest.raises(ValidationError, match="finest_limit: size_ranges say all limits, got 16"):
        ModelSpec.model_validate(
            {"foreground_targets": {"finest_limit": 16.0, "size_ranges": ranges}}, strict=False
        )


@pytest.mark.parametrize(
    ("kind", "limit", "largest", "warns"),
    [
        ("side", 64.0, 64.0, True),
        ("side", 64.0, 100.0, False),
        ("side", 16.0, 40.0, False),
        ("paper", 64.0, 64.0, True),
        ("paper", 64.0, 100.0, False),
        ("side", 64.0, 0.0, False),
    ],
)
def test_objects_that_are_all_of_the_finest_level_are_said(kind, limit, largest, warns):
    spec = ModelSpec.model_validate({"foreground_targets": {"kind": kind, "finest_limit": limit}})
    sentence = one_level_only(spec, (largest / 2, largest, largest))
    assert (sentence is not None) is warns
    # True: one box as large as that, everywhere in an image.
    if largest:
        share = largest / 512
        boxes = target(*((x / 32, y / 32, share, share) for x in range(33) for y in range(33)))
        levels = foreground_rule(spec).labels(
            [boxes], [(512, 512)], [(64, 64), (32, 32), (16, 16), (8, 8)], (8, 16, 32, 64)
        )
        assert bool(levels[0, 64 * 64 :].any()) is not warns
    other = {"token_selection": {"scoring": {"kind": "objectness"}}}
    assert one_level_only(ModelSpec.model_validate(other), (16.0, 32.0, 32.0)) is None
    if sentence:
        assert sentence == (
            "model.foreground_targets: no box is longer than 64 px, so that the scorer learns of "
            "foreground on the finest level only, which takes up to 64 px; finest_limit: 32 would "
            "share it out"
        )


@pytest.mark.parametrize("kind", ["side", "paper", "soft"])
def test_the_rule_of_a_spec_has_its_distance_and_ranges(kind):
    rule = foreground_rule(ModelSpec.model_validate({"foreground_targets": {"kind": kind}}))
    ranges = overlapping_size_ranges(4) if kind == "paper" else default_size_ranges(4)
    assert rule == ForegroundRule(kind, ranges, None)
    box = target((0.5, 0.5, 0.9, 0.9))
    shapes, strides = [(8, 8), (4, 4), (2, 2), (1, 1)], (8, 16, 32, 64)
    labels = rule.labels([box], [(64, 64)], shapes, strides) > 0
    anywhere = rule.on_any_level().labels([box], [(64, 64)], shapes, strides) > 0
    assert anywhere.all()
    assert labels.sum() < anywhere.sum()
