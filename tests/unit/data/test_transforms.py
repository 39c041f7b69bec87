from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.data.sample import Sample
from focus_lab.data.streams import Stream, generator
from focus_lab.data.transforms import (
    EvalTransform,
    TrainTransform,
    cropped,
    flipped,
    resized,
    resized_size,
)
from focus_lab.specs.data import Augmentation, Crop, EvaluationTransform

SMALL = Augmentation(
    sizes=(24, 32, 40),
    max_size=60,
    crop=Crop(probability=0.5, sizes=(30, 40), crop_size=(16, 28)),
    permute_channels=True,
)


@pytest.mark.parametrize(
    ("height", "width", "shortest", "longest", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),
        (640, 480, 800, 1333, (1067, 800)),
        (427, 640, 800, 1333, (800, 1199)),
        (300, 1000, 800, 1333, (400, 1333)),
        (500, 333, 480, 1333, (721, 480)),
        (100, 100, 50, 1333, (50, 50)),
        (3, 3000, 30, 60, (1, 60)),
    ],
)
def test_the_shortest_side_rules_until_the_longest_exceeds_its_limit(
    height, width, shortest, longest, expected
):
    assert resized_size(height, width, shortest, longest) == expected


@st.composite
def samples(draw) -> Sample:
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    count = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    boxes = torch.from_numpy(corners.reshape(count, 4)).float()
    pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return Sample(pixels, boxes, torch.arange(count), 1, (height, width))


@settings(deadline=None, max_examples=60)
@given(sample=samples(), seed=st.integers(0, 2**40))
def test_boxes_stay_inside_the_image_and_have_an_extent(sample, seed):
    for transformed in (
        TrainTransform(SMALL)(sample, np.random.default_rng(seed)),
        EvalTransform(EvaluationTransform(size=20, max_size=33))(sample),
    ):
        height, width = transformed.size
        boxes = transformed.boxes_xyxy
        assert transformed.image.shape == (3, height, width)
        assert transformed.image.dtype == torch.uint8
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(boxes) == len(transformed.labels)
        assert transformed.original_size == sample.original_size
        assert type(boxes) is torch.Tensor


@settings(deadline=None, max_examples=30)
@given(sample=samples())
def test_flipping_twice_changes_nothing(sample):
    twice = flipped(flipped(sample))
    assert torch.equal(twice.image, sample.image)
    assert torch.allclose(twice.boxes_xyxy, sample.boxes_xyxy, atol=1e-4)


def test_flipping_mirrors_pixels_and_boxes(make_sample):
    sample = make_sample(10, 20, boxes=[[2.0, 1.0, 6.0, 9.0]])
    mirrored = flipped(sample)
    assert torch.equal(mirrored.image, sample.image.flip(2))
    assert mirrored.boxes_xyxy.tolist() == [[14.0, 1.0, 18.0, 9.0]]


def test_boxes_scale_with_the_image(make_sample):
    sample = resized(make_sample(10, 20, boxes=[[2.0, 1.0, 6.0, 9.0]]), 30, 40)
    assert sample.size == (30, 40)
    assert sample.boxes_xyxy.tolist() == [[4.0, 3.0, 12.0, 27.0]]


def test_a_bright_spot_stays_in_its_box_through_every_transform():
    pixels = torch.zeros(3, 60, 80, dtype=torch.uint8)
    pixels[:, 20:40, 30:60] = 255
    sample = Sample(
        pixels, torch.tensor([[30.0, 20.0, 60.0, 40.0]]), torch.tensor([0]), 1, (60, 80)
    )
    for seed in range(40):
        after = TrainTransform(SMALL)(sample, np.random.default_rng(seed))
        found = torch.zeros(after.size, dtype=torch.bool)
        for left, top, right, bottom in after.boxes_xyxy.round().int().tolist():
            found[top:bottom, left:right] = True
        bright = after.image[0] > 127
        assert (bright ^ found).float().mean() < 0.08


def test_a_crop_clips_boxes_and_drops_what_is_left_outside(make_sample):
    sample = make_sample(
        20, 20, boxes=[[2.0, 2.0, 8.0, 8.0], [12.0, 12.0, 18.0, 18.0], [5.0, 0.0, 6.0, 3.0]]
    )
    part = cropped(sample, 3, 5, 10, 10)
    assert torch.equal(part.image, sample.image[:, 3:13, 5:15])
    assert part.boxes_xyxy.tolist() == [[0.0, 0.0, 3.0, 5.0], [7.0, 9.0, 10.0, 10.0]]
    assert part.labels.tolist() == [0, 1]


def test_a_crop_may_leave_no_box_at_all(make_sample):
    part = cropped(make_sample(20, 20, boxes=[[0.0, 0.0, 4.0, 4.0]]), 10, 10, 8, 8)
    assert part.boxes_xyxy.shape == (0, 4)


def test_without_sizes_and_crop_an_image_keeps_its_very_pixels(make_sample):
    sample = make_sample()
    still = Augmentation(flip=0.0, sizes=(), crop=Crop(probability=0.0))
    assert TrainTransform(still)(sample, np.random.default_rng(0)).image is sample.image
    assert EvalTransform(EvaluationTransform(size=None))(sample).image is sample.image


def test_permuted_channels_are_the_same_three(make_sample):
    sample = make_sample()
    still = Augmentation(flip=0.0, sizes=(), crop=Crop(probability=0.0), permute_channels=True)
    orders = set()
    for seed in range(30):
        after = TrainTransform(still)(sample, np.random.default_rng(seed)).image
        orders.add(
            tuple(int((sample.image == channel).all(dim=(1, 2)).nonzero()) for channel in after)
        )
    assert len(orders) == 6


def test_the_same_stream_gives_the_same_image_and_others_differ(make_sample):
    sample, transform = make_sample(50, 60), TrainTransform(SMALL)

    def after(epoch: int, index: int, seed: int) -> bytes:
        image = transform(sample, generator(Stream.AUGMENTATION, epoch, index, seed)).image
        return image.contiguous().numpy().tobytes()

    assert after(1, 2, 3) == after(1, 2, 3)
    assert len({after(0, 0, 0), after(1, 0, 0), after(0, 1, 0), after(0, 0, 1)}) == 4


def test_sizes_and_crops_are_drawn_from_their_ranges(make_sample):
    sample = make_sample(100, 100)
    recipe = Augmentation(
        sizes=(24, 40), crop=Crop(probability=1.0, sizes=(50,), crop_size=(20, 30))
    )
    shapes = {
        TrainTransform(recipe)(sample, np.random.default_rng(seed)).size for seed in range(60)
    }
    assert {min(shape) for shape in shapes} == {24, 40}
    assert any(height != width for height, width in shapes)


def test_the_evaluation_size_is_known_without_an_image():
    transform = EvalTransform(EvaluationTransform(size=800, max_size=1333))
    assert transform.size(480, 640) == (800, 1067)
    assert EvalTransform(EvaluationTransform(size=None)).size(480, 640) == (480, 640)


@pytest.mark.parametrize("shape", [(97, 61), (40, 90), (64, 64)])
def test_resizing_agrees_with_pillow(shape):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    sample = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 1, shape)
    for height, width in ((32, 50), (120, 140)):
        expected = np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        )
        found = resized(sample, height, width).image.permute(1, 2, 0).numpy()
        assert np.abs(found.astype(int) - expected).max() <= 1
