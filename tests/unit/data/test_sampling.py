from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_lab.data.sampling import BatchOrder, share_of_worker
from focus_lab.errors import DataError

LANDSCAPE, PORTRAIT = (30, 40), (40, 30)


def order_of(sizes, batch_size=4, seed=0, grouped=True) -> BatchOrder:
    return BatchOrder(sizes, batch_size=batch_size, seed=seed, group_by_aspect_ratio=grouped)


@settings(deadline=None, max_examples=50)
@given(
    wide=st.integers(0, 40),
    high=st.integers(0, 40),
    batch_size=st.integers(1, 8),
    epoch=st.integers(0, 5),
    grouped=st.booleans(),
)
def test_an_epoch_covers_all_but_incomplete_batches_and_repeats_nothing(
    wide, high, batch_size, epoch, grouped
):
    if wide + high < batch_size:
        return
    sizes = [LANDSCAPE] * wide + [PORTRAIT] * high
    order = order_of(sizes, batch_size, grouped=grouped)
    batches = order.batches(epoch)
    assert batches.shape == (len(order), batch_size)
    assert len(set(batches.ravel().tolist())) == batches.size
    assert len(sizes) - batches.size <= 2 * (batch_size - 1)
    if grouped and min(wide, high) >= batch_size:
        assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)


def test_batches_hold_one_orientation_and_come_mixed():
    order = order_of([LANDSCAPE, PORTRAIT] * 40)
    portrait = order.batches(0).min(axis=1) % 2
    assert 0 < portrait[:10].sum() < 10


def test_an_epoch_has_its_own_order_and_a_seed_too():
    sizes = [LANDSCAPE] * 32
    first = order_of(sizes).batches(0)
    np.testing.assert_array_equal(first, order_of(sizes).batches(0))
    assert (first != order_of(sizes).batches(1)).any()
    assert (first != order_of(sizes, seed=1).batches(0)).any()


def test_dropped_images_change_from_epoch_to_epoch():
    order = order_of([LANDSCAPE] * 7)
    seen = {index for epoch in range(10) for index in order.batches(epoch).ravel().tolist()}
    assert seen == set(range(7))


def test_a_group_too_small_for_a_batch_is_still_seen():
    order = order_of([LANDSCAPE] * 20 + [PORTRAIT] * 2)
    seen = {index for epoch in range(10) for index in order.batches(epoch).ravel().tolist()}
    assert seen == set(range(22))


@settings(deadline=None, max_examples=50)
@given(world_size=st.sampled_from([1, 2, 4]), epoch=st.integers(0, 3))
def test_the_parts_of_all_workers_are_disjoint_and_make_up_the_batch(world_size, epoch):
    batches = order_of([LANDSCAPE] * 30 + [PORTRAIT] * 21).batches(epoch)
    parts = [share_of_worker(batches, rank, world_size) for rank in range(world_size)]
    assert all(part.shape == (len(batches), 4 // world_size) for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), batches)


def test_a_batch_that_workers_cannot_share_evenly_is_an_error():
    with pytest.raises(DataError, match="must be a multiple of the number of workers, got 4 for 3"):
        share_of_worker(order_of([LANDSCAPE] * 8).batches(0), 0, 3)


def test_fewer_images_than_a_batch_is_an_error():
    with pytest.raises(DataError, match=r"training\.batch_size: .* got 4 for 3 training images"):
        order_of([LANDSCAPE] * 3)
