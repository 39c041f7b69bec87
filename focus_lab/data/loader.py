"""Batches for training and evaluation, the same with and without loader processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from focus_lab.data.batch import Batch, PackedBatch, collate
from focus_lab.data.dataset import DetectionDataset
from focus_lab.data.sample import Sample
from focus_lab.data.sampling import BatchOrder, share_of_worker
from focus_lab.data.streams import Stream, generator
from focus_lab.data.transforms import EvalTransform, TrainTransform
from focus_lab.errors import DataError
from focus_lab.specs.data import DataSpec, Normalisation

__all__ = ["Batch", "EvalLoader", "TrainLoader", "build_eval_loader", "build_train_loader"]

Key = tuple[int, int]
"""(epoch, index): all that an augmented image depends on, beside the seed."""


class TrainLoader:
    """Augmented batches of one epoch after the other.

    What image i looks like in epoch e depends on (seed, e, i) alone, and which images form batch b
    on (seed, e): neither on the number of loader processes or workers, nor on where a resumed run
    starts. torch's global generators are not touched.

    Args:
        dataset: the images.
        order: which images form a batch.
        transform: the augmentation.
        normalisation: channel statistics.
        seed: the trial's seed.
        workers: loader processes; 0 loads in this process.
        rank: this worker.
        world_size: number of workers; each gets its part of every global batch.
        pin_memory: whether batches are put into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        order: BatchOrder,
        transform: TrainTransform,
        normalisation: Normalisation,
        *,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self._keys = _EpochKeys(order, rank, world_size)
        images = _AugmentedImages(dataset, transform, seed)
        self._batches = _torch_loader(images, self._keys, normalisation, workers, pin_memory)
        self._order = order

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the current one starts."""
        return len(self._order)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose what the next iteration yields: batches start_batch .. len - 1 of the epoch.

        Args:
            epoch: from 0.
            start_batch: batches already computed before a resumed run stopped; len yields none.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(f"set_epoch: no batch {start_batch} of {len(self)} in epoch {epoch}")
        self._keys.epoch, self._keys.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the chosen epoch, epoch 0 unless set.

        Raises:
            DataError: if an image cannot be read.
        """
        return _unpacked(self._batches)


class EvalLoader:
    """All images in order, not augmented; the last batch may be smaller.

    Workers take turns batch by batch, so that an image is in the same batch for any number of them.

    Args:
        dataset: the images.
        transform: the resizing.
        normalisation: channel statistics.
        batch_size: images a batch.
        workers: loader processes; 0 loads in this process.
        indices: which images, in this order; `None` takes all.
        rank: this worker.
        world_size: number of workers.
        pin_memory: whether batches are put into page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        transform: EvalTransform,
        normalisation: Normalisation,
        *,
        batch_size: int,
        workers: int = 0,
        indices: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        wanted = range(len(dataset)) if indices is None else indices
        self._keys = [
            [(0, index) for index in wanted[start : start + batch_size]]
            for start in range(0, len(wanted), batch_size)
        ][rank::world_size]
        images = _EvaluationImages(dataset, transform)
        self._batches = _torch_loader(images, self._keys, normalisation, workers, pin_memory)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        """The batches.

        Raises:
            DataError: if an image cannot be read.
        """
        return _unpacked(self._batches)


def build_train_loader(
    dataset: DetectionDataset,
    spec: DataSpec,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> TrainLoader:
    """The training loader of a spec.

    Args:
        dataset: the training split.
        spec: augmentation, normalisation and grouping.
        batch_size: images a batch, over all workers.
        seed: the trial's seed.
        workers: loader processes of this worker.
        rank: this worker.
        world_size: number of workers.
        pin_memory: whether batches are put into page-locked memory.

    Raises:
        DataError: if there are too few images, or the batch does not divide evenly.
    """
    order = BatchOrder(
        dataset.sizes,
        batch_size=batch_size,
        seed=seed,
        group_by_aspect_ratio=spec.aspect_ratio_grouping,
    )
    # Fails now, not at the first step.
    share_of_worker(order.batches(0), rank, world_size)
    return TrainLoader(
        dataset,
        order,
        TrainTransform(spec.augmentation),
        spec.normalisation,
        seed=seed,
        workers=workers,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
    )


def build_eval_loader(
    dataset: DetectionDataset,
    spec: DataSpec,
    *,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> EvalLoader:
    """The evaluation loader of a spec; arguments as `EvalLoader`."""
    return EvalLoader(
        dataset,
        EvalTransform(spec.evaluation),
        spec.normalisation,
        batch_size=batch_size,
        workers=workers,
        indices=indices,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
    )


class _EpochKeys:
    """Keys of the batches of the chosen epoch; read anew at each iteration, in the main process."""

    def __init__(self, order: BatchOrder, rank: int, world_size: int) -> None:
        self.epoch = 0
        self.start_batch = 0
        self._order = order
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        batches = share_of_worker(self._order.batches(epoch), self._rank, self._world_size)
        for indices in batches[self.start_batch :].tolist():
            yield [(epoch, index) for index in indices]


@dataclass(frozen=True)
class _Failure:
    """An image that could not be loaded, on its way to this process."""

    message: str


class _AugmentedImages(Dataset[Sample | _Failure]):
    def __init__(self, dataset: DetectionDataset, transform: TrainTransform, seed: int) -> None:
        self._dataset = dataset
        self._transform = transform
        self._seed = seed

    def __getitem__(self, key: Key) -> Sample | _Failure:
        epoch, index = key
        try:
            sample = self._dataset.load(index)
        except DataError as error:
            return _Failure(str(error))
        return self._transform(sample, generator(Stream.AUGMENTATION, epoch, index, self._seed))


class _EvaluationImages(Dataset[Sample | _Failure]):
    def __init__(self, dataset: DetectionDataset, transform: EvalTransform) -> None:
        self._dataset = dataset
        self._transform = transform

    def __getitem__(self, key: Key) -> Sample | _Failure:
        try:
            return self._transform(self._dataset.load(key[1]))
        except DataError as error:
            return _Failure(str(error))


def _torch_loader(
    images: Dataset[Sample | _Failure],
    keys: Any,
    normalisation: Normalisation,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    return DataLoader(
        images,
        batch_sampler=keys,
        num_workers=workers,
        multiprocessing_context=_processes() if workers else None,
        persistent_workers=workers > 0,
        collate_fn=partial(_collate_or_fail, normalisation=normalisation),
        pin_memory=pin_memory,
        # A generator of its own: by default each iteration draws from torch's global one, and a
        # resumed run would continue with other numbers than an uninterrupted one.
        generator=torch.Generator(),
    )


def _processes() -> BaseContext:
    """How loader processes start: forked from a clean server that has imported what they need.

    Forking this process, which has threads (torch's, Ray's), may deadlock; starting each process
    from nothing would take seconds of imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _collate_or_fail(
    samples: Sequence[Sample | _Failure], normalisation: Normalisation
) -> PackedBatch | _Failure:
    """The batch, or its first error; raised in a loader process it would come as a traceback."""
    readable: list[Sample] = []
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
        readable.append(sample)
    return collate(readable, normalisation)


def _unpacked(batches: DataLoader[Any]) -> Iterator[Batch]:
    for packed in batches:
        if isinstance(packed, _Failure):
            # A new exception, held by no variable: one that its own frame refers to would form a
            # cycle with the iterator, and processes freed by the cycle collector end seconds late.
            raise DataError(packed.message)
        yield packed.unpacked()
