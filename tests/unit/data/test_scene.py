from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.data.outlines import CLASSES, DISTRACTORS
from focus_lab.data.scene import MAX_OVERLAP, fitted_tilt, lay_out, object_boxes, side_from
from focus_lab.data.streams import Stream, generator
from focus_lab.specs.data import ShapesData

SPEC = ShapesData(kind="shapes", image_size=(128, 128), object_size=(8, 64), objects=(6, 12))


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return max(width, 0) * max(height, 0) / min(areas)


@pytest.mark.parametrize("index", range(8))
def test_no_figure_hides_much_of_another(index):
    figures = lay_out(SPEC, generator(Stream.LAYOUT, 0, index, 0), tilt=1.0)
    for a, b in itertools.combinations(figures, 2):
        assert overlap(a.box_xyxy, b.box_xyxy) < MAX_OVERLAP


def test_objects_come_after_distractors_and_large_ones_first():
    figures = lay_out(SPEC, generator(Stream.LAYOUT, 0, 3, 0), tilt=0.0)
    kinds = [figure.label is not None for figure in figures]
    assert kinds == sorted(kinds)
    boxes, labels = object_boxes(figures)
    assert len(boxes) == len(labels) == sum(kinds)


def test_a_scene_without_figures_has_empty_boxes():
    boxes, labels = object_boxes([])
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


@settings(deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), tilt=st.floats(-12, 12))
def test_sides_keep_to_their_limits_and_rise_with_the_tilt(share, tilt):
    side = side_from(share, (8, 96), tilt)
    assert 8 <= side <= 96
    assert side <= side_from(share, (8, 96), tilt + 1) * (1 + 1e-9)


def test_without_tilt_sides_are_log_uniform():
    assert side_from(0.5, (8, 32), 0.0) == pytest.approx(16)


def test_without_a_wanted_share_or_a_choice_of_sides_nothing_is_tilted():
    assert fitted_tilt(SPEC.model_copy(update={"foreground_share": None})) == 0.0
    assert fitted_tilt(SPEC.model_copy(update={"object_size": (20, 20)})) == 0.0


@pytest.mark.parametrize("name", CLASSES)
def test_a_placed_outline_fills_its_box(name):
    placed = CLASSES[name].placed(0.3, 0.9, 50.0)
    assert placed.edge.min(axis=0) == pytest.approx([0, 0])
    assert max(placed.extent) == pytest.approx(50)
    if placed.hole is not None:
        assert (placed.hole.min(axis=0) > 0).all()
        assert (placed.hole.max(axis=0) < placed.extent).all()


@pytest.mark.parametrize("make", DISTRACTORS)
def test_distractors_are_outlines_too(make):
    placed = make(np.random.default_rng(0)).placed(math.pi / 3, 1.0, 20.0)
    assert max(placed.extent) == pytest.approx(20)
