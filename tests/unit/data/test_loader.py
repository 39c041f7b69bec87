from __future__ import annotations

from pathlib import Path

import pytest
import torch

from focus_lab.data.dataset import build_dataset
from focus_lab.data.loader import Batch, build_eval_loader, build_train_loader
from focus_lab.errors import DataError
from focus_lab.specs.data import ShapesData

SPEC = ShapesData(
    kind="shapes",
    image_size=(32, 40),
    num_train=15,
    num_val=5,
    object_size=(8, 24),
    objects=(0, 3),
    augmentation={
        "sizes": (24, 32),
        "max_size": 64,
        "crop": {"probability": 0.5, "sizes": (28,), "crop_size": (16, 24)},
        "permute_channels": True,
    },
    evaluation={"size": 24},
)


def same(ours: Batch, theirs: Batch) -> bool:
    return (
        torch.equal(ours.images, theirs.images)
        and ours.sizes == theirs.sizes
        and ours.image_ids == theirs.image_ids
        and ours.original_sizes == theirs.original_sizes
        and all(
            torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["labels"], b["labels"])
            for a, b in zip(ours.targets, theirs.targets, strict=True)
        )
    )


def train_loader(workers: int = 0, seed: int = 3, **settings):
    dataset = build_dataset(SPEC, "train")
    return build_train_loader(dataset, SPEC, batch_size=4, seed=seed, workers=workers, **settings)


def epoch(loader, number: int, start_batch: int = 0) -> list[Batch]:
    loader.set_epoch(number, start_batch)
    return list(loader)


@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(workers):
    plain, parallel = train_loader(), train_loader(workers)
    for number in (0, 1):
        ours, theirs = epoch(plain, number), epoch(parallel, number)
        assert len(ours) == len(theirs) == len(plain) == 3
        assert all(map(same, ours, theirs))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_continues_as_the_uninterrupted_one(workers):
    whole = epoch(train_loader(), 4)
    resumed = epoch(train_loader(workers), 4, start_batch=1)
    assert len(resumed) == 2
    assert all(map(same, whole[1:], resumed))


def test_loader_processes_are_not_forked_from_this_one_which_has_threads():
    loader = train_loader(workers=1)
    epoch(loader, 0)
    [process] = loader._batches._iterator._workers
    assert type(process).__name__ == "ForkServerProcess"


def test_an_abandoned_epoch_does_not_leak_into_the_next():
    loader = train_loader(workers=1)
    loader.set_epoch(0)
    next(iter(loader))
    assert all(map(same, epoch(loader, 1), epoch(train_loader(), 1)))


def test_epochs_and_seeds_differ():
    loader = train_loader()
    first = epoch(loader, 0)
    assert all(map(same, first, epoch(loader, 0)))
    assert not all(map(same, first, epoch(loader, 1)))
    assert not all(map(same, first, epoch(train_loader(seed=4), 0)))


def test_an_epoch_may_start_at_its_end():
    assert epoch(train_loader(), 0, start_batch=3) == []


@pytest.mark.parametrize(("number", "start"), [(-1, 0), (0, 4), (0, -1)])
def test_a_place_outside_the_epoch_is_refused(number, start):
    with pytest.raises(ValueError, match="set_epoch"):
        train_loader().set_epoch(number, start)


def test_every_worker_computes_its_part_of_the_global_batch():
    whole = epoch(train_loader(), 2)
    parts = [epoch(train_loader(rank=rank, world_size=2), 2) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert first.image_ids + second.image_ids == batch.image_ids
        for part, offset in ((first, 0), (second, 2)):
            height, width = part.images.shape[2:]
            expected = batch.images[offset : offset + 2, :, :height, :width]
            assert torch.equal(part.images, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generator_alone(workers):
    before = torch.get_rng_state()
    epoch(train_loader(workers), 0)
    list(build_eval_loader(build_dataset(SPEC, "val"), SPEC, batch_size=2, workers=workers))
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_takes_all_images_in_order_without_augmentation():
    dataset = build_dataset(SPEC, "val")
    plain = build_eval_loader(dataset, SPEC, batch_size=2)
    batches = list(plain)
    assert [batch.image_ids for batch in batches] == [(1, 2), (3, 4), (5,)]
    assert len(plain) == 3
    assert batches[0].sizes == ((24, 30), (24, 30))
    assert batches[0].original_sizes == ((32, 40), (32, 40))
    assert all(map(same, batches, plain))
    assert all(map(same, batches, build_eval_loader(dataset, SPEC, batch_size=2, workers=2)))


def test_evaluation_of_some_images():
    loader = build_eval_loader(build_dataset(SPEC, "val"), SPEC, batch_size=2, indices=[3, 0, 1])
    assert [batch.image_ids for batch in loader] == [(4, 1), (2,)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_arrives_as_the_sentence_it_is(
    write_folder, make_image, make_annotation, workers
):
    spec = write_folder([make_image(1), make_image(2)], [make_annotation(i, i) for i in (1, 2)])
    dataset = build_dataset(spec, "train")
    (Path(spec.root) / "images" / "2.png").write_bytes(b"broken")
    loader = build_train_loader(dataset, spec, batch_size=2, seed=0, workers=workers)
    with pytest.raises(DataError, match=r"^[^\n]*2\.png: is not a readable image[^\n]*$"):
        list(loader)
    with pytest.raises(DataError, match=r"2\.png: is not a readable image"):
        list(build_eval_loader(dataset, spec, batch_size=1, workers=workers))


def test_a_batch_that_workers_cannot_share_fails_when_the_loader_is_built():
    with pytest.raises(DataError, match="multiple of the number of workers"):
        train_loader(rank=0, world_size=3)
