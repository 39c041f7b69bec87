from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from focus_lab.data import shapes
from focus_lab.data.check import check_dataset
from focus_lab.data.foreground import covered_cells
from focus_lab.data.outlines import CLASSES
from focus_lab.data.shapes import ShapesDataset
from focus_lab.specs.data import ShapesData


def spec_of(**settings) -> ShapesData:
    small = {
        "image_size": (64, 80),
        "num_train": 12,
        "num_val": 6,
        "object_size": (8, 40),
        "objects": (1, 5),
    }
    return ShapesData(kind="shapes", **{**small, **settings})


def test_a_scene_is_the_same_whenever_and_wherever_it_is_made():
    first, second = ShapesDataset(spec_of(), "train"), ShapesDataset(spec_of(), "train")
    backwards = [second.load(index) for index in reversed(range(12))][::-1]
    for index, again in enumerate(backwards):
        sample = first.load(index)
        assert torch.equal(sample.image, again.image)
        assert torch.equal(sample.boxes_xyxy, again.boxes_xyxy)
        assert torch.equal(sample.labels, again.labels)


def test_more_scenes_leave_earlier_ones_as_they_were():
    few, many = ShapesDataset(spec_of(), "train"), ShapesDataset(spec_of(num_train=40), "train")
    assert torch.equal(few.load(7).image, many.load(7).image)


def test_scenes_splits_and_seeds_differ():
    train, val = ShapesDataset(spec_of(), "train"), ShapesDataset(spec_of(), "val")
    other = ShapesDataset(spec_of(seed=1), "train")
    images = [train.load(0), train.load(1), val.load(0), val.load(1), other.load(0)]
    assert len({sample.image.numpy().tobytes() for sample in images}) == 5


def test_scenes_do_not_touch_the_global_generators():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    ShapesDataset(spec_of(), "train").load(0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_a_sample_has_the_promised_types_and_size():
    dataset = ShapesDataset(spec_of(), "val")
    sample = dataset.load(2)
    assert sample.image.shape == (3, 64, 80)
    assert sample.image.dtype == torch.uint8
    assert sample.boxes_xyxy.dtype == torch.float32
    assert sample.labels.dtype == torch.int64
    assert sample.image_id == 3
    assert dataset.sizes == ((64, 80),) * 6
    assert len(dataset) == 6


def test_only_the_asked_for_classes_and_numbers_occur():
    dataset = ShapesDataset(spec_of(num_classes=3, objects=(0, 4), num_train=80), "train")
    counts = [len(dataset.labels(index)) for index in range(80)]
    labels = {int(label) for index in range(80) for label in dataset.labels(index)}
    assert dataset.class_names == tuple(CLASSES)[:3]
    assert labels == {0, 1, 2}
    assert set(counts) == {0, 1, 2, 3, 4}


def test_boxes_lie_inside_and_keep_to_the_size_limits():
    dataset = ShapesDataset(spec_of(num_train=60), "train")
    boxes = torch.cat([dataset.boxes_xyxy(index) for index in range(60)])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(dim=1).values
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([80, 64, 80, 64])).all()
    assert sides.min() >= 8
    assert sides.max() <= 40.125


def test_objects_as_large_as_the_image_fit_in():
    dataset = ShapesDataset(spec_of(object_size=(64, 64), objects=(1, 1)), "train")
    assert all(len(dataset.labels(index)) == 1 for index in range(12))
    assert all(dataset.boxes_xyxy(index).max() <= 80 for index in range(12))
    assert all(dataset.load(index).image.shape == (3, 64, 80) for index in range(3))


def test_colour_says_nothing_of_the_class():
    dataset = ShapesDataset(spec_of(num_classes=2, objects=(1, 1), num_train=120), "train")
    means: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for index in range(120):
        sample = dataset.load(index)
        left, top, right, bottom = sample.boxes_xyxy[0].int().tolist()
        center = sample.image[:, (top + bottom) // 2, (left + right) // 2]
        means[int(sample.labels[0])].append(center.float())
    circle, square = (torch.stack(means[label]) for label in (0, 1))
    spread = torch.cat((circle, square)).std(dim=0)
    assert ((circle.mean(dim=0) - square.mean(dim=0)).abs() < 0.5 * spread).all()


def test_objects_stand_out_from_what_they_cover():
    plain = spec_of(
        objects=(1, 1), distractors=(0, 0), contrast=150, num_classes=1, object_size=(30, 30)
    )
    dataset = ShapesDataset(plain, "train")
    for index in range(12):
        sample = dataset.load(index)
        left, top, right, bottom = sample.boxes_xyxy[0].int().tolist()
        inside = sample.image[:, (top + bottom) // 2, (left + right) // 2].float()
        around = sample.image[
            :, [top, top, bottom - 1, bottom - 1], [left, right - 1, left, right - 1]
        ]
        assert (inside - around.float().mean(dim=1)).norm() > 90


@pytest.mark.parametrize("share", [0.03, 0.15, 0.40])
def test_the_dial_sets_the_mean_share_of_pixels_in_boxes(share):
    spec = ShapesData(
        kind="shapes",
        image_size=(160, 160),
        object_size=(4, 48),
        foreground_share=share,
        num_train=300,
    )
    dataset = ShapesDataset(spec, "train")
    shares = [covered_cells(dataset.boxes_xyxy(i).numpy(), 160, 160, 1).mean() for i in range(300)]
    assert np.mean(shares) == pytest.approx(share, rel=0.12)


def test_a_share_out_of_reach_gives_the_nearest_one_and_the_check_shows_it():
    spec = spec_of(object_size=(8, 10), objects=(1, 2), foreground_share=0.5)
    report = check_dataset(spec)
    assert report.wanted_foreground == 0.5
    assert 0.01 < report.splits[0].foreground_pixels < 0.05


def test_the_digest_names_the_content_not_the_transforms(monkeypatch):
    digest = ShapesDataset(spec_of(), "train").digest
    assert digest == ShapesDataset(spec_of(augmentation={"flip": 0.0}), "train").digest
    assert digest != ShapesDataset(spec_of(), "val").digest
    assert digest != ShapesDataset(spec_of(contrast=90), "train").digest
    monkeypatch.setattr(shapes, "GENERATOR_VERSION", 999)
    assert digest != ShapesDataset(spec_of(), "train").digest


def test_the_scenes_of_this_generator_version_are_these():
    # A change here changes everybody's data: raise GENERATOR_VERSION with it.
    dataset = ShapesDataset(spec_of(foreground_share=None), "train")
    assert dataset.boxes_xyxy(4).tolist() == [[59.0, 38.0, 71.875, 52.0]]
    assert dataset.labels(4).tolist() == [0]
    assert dataset.load(4).image[:, 10, 10].tolist() == [138, 191, 160]


def test_small_splits_stay_in_memory_and_large_ones_do_not(monkeypatch):
    kept = ShapesDataset(spec_of(), "train")
    assert kept.load(3).image is kept.load(3).image
    monkeypatch.setattr(shapes, "CACHE_BYTES", 1000)
    painted = ShapesDataset(spec_of(), "train")
    assert painted.load(3).image is not painted.load(3).image
    assert torch.equal(painted.load(3).image, kept.load(3).image)


def test_painted_scenes_do_not_travel_to_other_processes():
    dataset = ShapesDataset(spec_of(), "train")
    empty = len(pickle.dumps(dataset))
    dataset.load(0)
    assert len(pickle.dumps(dataset)) < empty + 2000
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).load(0).image, dataset.load(0).image)


def test_a_scene_that_does_not_exist_is_an_index_error():
    with pytest.raises(IndexError):
        ShapesDataset(spec_of(), "val").load(6)
