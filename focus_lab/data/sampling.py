"""Which images form which batch of an epoch: a function of (seed, epoch), whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from focus_lab.data.streams import Stream, generator
from focus_lab.errors import DataError


class BatchOrder:
    """Shuffled full batches; incomplete ones are dropped, so each step sees `batch_size` images.

    With grouping, a batch holds only landscape (wider than high) or only other images; at most
    batch_size - 1 images a group are left out of an epoch, other ones in the next. If a group is
    too small for a single batch, its images would never be seen: then nothing is grouped.

    Args:
        sizes: (height, width) of each image.
        batch_size: images a batch, over all workers.
        seed: the trial's seed.
        group_by_aspect_ratio: whether batches are grouped.

    Raises:
        DataError: if there are fewer images than a batch needs.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        seed: int,
        group_by_aspect_ratio: bool,
    ) -> None:
        if len(sizes) < batch_size:
            raise DataError(
                f"training.batch_size: a batch needs more images than there are, "
                f"got {batch_size} for {len(sizes)} training images; lower it or add images"
            )
        self._batch_size = batch_size
        self._seed = seed
        self._groups = [np.arange(len(sizes))]
        if group_by_aspect_ratio:
            landscape = np.array([width > height for height, width in sizes], dtype=np.bool_)
            groups = [np.flatnonzero(landscape), np.flatnonzero(~landscape)]
            if all(len(group) == 0 or len(group) >= batch_size for group in groups):
                self._groups = groups

    def __len__(self) -> int:
        """Batches an epoch; the same in every epoch."""
        return sum(len(group) // self._batch_size for group in self._groups)

    def batches(self, epoch: int) -> NDArray[np.int64]:
        """Image indices of the batches of an epoch, [len(self), batch_size]."""
        batches = []
        for number, group in enumerate(self._groups):
            rng = generator(Stream.ORDER, epoch, number, self._seed)
            full = len(group) // self._batch_size * self._batch_size
            batches.append(rng.permutation(group)[:full].reshape(-1, self._batch_size))
        together = np.concatenate(batches)
        return generator(Stream.ORDER, epoch, len(batches), self._seed).permutation(together)


def share_of_worker(batches: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """The part of each global batch that a worker computes, [n, batch] -> [n, batch / world_size].

    Raises:
        DataError: if the batch cannot be divided evenly.
    """
    batch_size = batches.shape[1]
    if batch_size % world_size:
        raise DataError(
            "training.batch_size: must be a multiple of the number of workers, "
            f"got {batch_size} for {world_size}; choose one that divides evenly"
        )
    part = batch_size // world_size
    return batches[:, rank * part : (rank + 1) * part]
