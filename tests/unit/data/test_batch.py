from __future__ import annotations

import pytest
import torch

from focus_lab.data.batch import collate
from focus_lab.specs.data import Normalisation

STATISTICS = Normalisation(mean=(100.0, 50.0, 10.0), std=(2.0, 4.0, 5.0))


def test_images_are_normalised_and_padded_with_zeros(make_sample):
    samples = [make_sample(10, 20), make_sample(12, 16)]
    batch = collate(samples, STATISTICS).unpacked()
    assert batch.images.shape == (2, 3, 12, 20)
    assert batch.images.dtype == torch.float32
    assert batch.sizes == ((10, 20), (12, 16))
    expected = (samples[1].image[1].float() - 50.0) / 4.0
    assert torch.equal(batch.images[1, 1, :, :16], expected)
    assert (batch.images[0, :, 10:] == 0).all()
    assert (batch.images[1, :, :, 16:] == 0).all()


def test_boxes_are_centres_and_shares_of_the_valid_image(make_sample):
    samples = [
        make_sample(10, 20, boxes=[[5.0, 2.0, 15.0, 6.0]]),
        make_sample(40, 40, boxes=[], image_id=9),
        make_sample(20, 20, boxes=[[0.0, 0.0, 20.0, 20.0], [10.0, 0.0, 20.0, 5.0]]),
    ]
    batch = collate(samples, STATISTICS).unpacked()
    assert torch.allclose(batch.targets[0]["boxes"], torch.tensor([[0.5, 0.4, 0.5, 0.4]]))
    assert batch.targets[1]["boxes"].shape == (0, 4)
    assert batch.targets[1]["labels"].dtype == torch.int64
    assert torch.allclose(
        batch.targets[2]["boxes"], torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.75, 0.125, 0.5, 0.25]])
    )
    assert batch.targets[2]["labels"].tolist() == [0, 1]
    assert batch.image_ids == (1, 9, 1)


def test_a_batch_of_images_without_boxes_is_a_batch(make_sample):
    batch = collate([make_sample(boxes=[]), make_sample(boxes=[])], STATISTICS).unpacked()
    assert [len(target["boxes"]) for target in batch.targets] == [0, 0]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
def test_the_parts_of_a_batch_make_it_up(make_sample, parts):
    samples = [make_sample(10 + number, 20, image_id=number) for number in range(5)]
    batch = collate(samples, STATISTICS).unpacked()
    split = batch.split(parts)
    assert len(split) == min(parts, 5)
    assert torch.equal(torch.cat([part.images for part in split]), batch.images)
    assert sum((part.image_ids for part in split), ()) == batch.image_ids
    assert max(map(len, split)) - min(map(len, split)) <= 1


def test_a_batch_moves_to_a_device(make_sample):
    batch = collate([make_sample()], STATISTICS).unpacked().to("meta")
    assert batch.images.device.type == "meta"
    assert batch.targets[0]["boxes"].device.type == "meta"
