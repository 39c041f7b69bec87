"""Room: what fits on machines beside what is held, against a search through all placements."""

from __future__ import annotations

import time

from hypothesis import assume, example, given
from hypothesis import strategies as st

from focus_lab.lab.queue.capacity import Capacity, Gang, Resources, Room

sizes = st.builds(
    Resources, st.sampled_from([1.0, 2.0, 3.0, 5.0]), st.sampled_from([0.0, 0.5, 1.0, 2.0])
)
machines = st.lists(
    st.builds(Resources, st.sampled_from([2.0, 4.0, 8.0]), st.sampled_from([0.0, 1.0, 4.0])),
    min_size=1,
    max_size=3,
).map(tuple)
gangs = st.builds(Gang, sizes, st.integers(1, 3))


def can_be_placed(free: tuple[Resources, ...], workers: list[Resources]) -> bool:
    """Try every machine for every worker."""
    if not workers:
        return True
    first, *others = workers
    return any(
        machine.holds(first)
        and can_be_placed((*free[:place], machine - first, *free[place + 1 :]), others)
        for place, machine in enumerate(free)
    )


def workers_of(held: list[Gang]) -> list[Resources]:
    return [gang.worker for gang in held for _ in range(gang.workers)]


@given(machines, st.lists(gangs, max_size=3), gangs)
def test_what_fits_can_be_placed_beside_all_that_is_held(
    nodes: tuple[Resources, ...], held: list[Gang], wanted: Gang
) -> None:
    assume(can_be_placed(nodes, workers_of(held)))
    room = Room(Capacity(nodes), held)
    count = min(2, room.count(wanted))
    assert can_be_placed(nodes, workers_of([*held, wanted.times(count)]))


@given(machines, sizes, st.integers(0, 4), st.integers(1, 3))
@example((Resources(4.0), Resources(5.0)), Resources(3.0), 1, 1)
def test_among_workers_of_one_size_nothing_that_fits_is_overlooked(
    nodes: tuple[Resources, ...], size: Resources, held: int, wanted: int
) -> None:
    assume(can_be_placed(nodes, [size] * held))
    room = Room(Capacity(nodes), [Gang(size)] * held)
    assert bool(room.count(Gang(size, wanted))) == can_be_placed(nodes, [size] * (held + wanted))


@given(machines, gangs)
def test_what_fits_while_nothing_runs_fits_again_when_all_has_ended(
    nodes: tuple[Resources, ...], wanted: Gang
) -> None:
    capacity = Capacity(nodes)
    before = capacity.empty.count(wanted)
    room = Room(capacity)
    for _ in range(before):
        assert room.count(wanted)
        room.take(wanted)
    assert not room.count(wanted)
    assert capacity.empty.count(wanted) == before


@given(machines, st.lists(gangs, max_size=4), gangs)
def test_workers_are_placed_together_where_one_by_one_would_be(
    nodes: tuple[Resources, ...], held: list[Gang], wanted: Gang
) -> None:
    together = Room(Capacity(nodes), held)
    ordered = sorted(held, key=lambda one: (one.worker.gpus, one.worker.cpus), reverse=True)
    one_by_one = Room(Capacity(nodes))
    for gang in ordered:
        for _ in range(gang.workers):
            one_by_one.take(Gang(gang.worker))
    assert together.count(wanted) == one_by_one.count(wanted)
    assert together.free.holds(one_by_one.free)


def test_very_many_workers_are_placed_at_once() -> None:
    crumb = Gang(Resources(0.01), 1024)
    nodes = tuple(Resources(64.0, 8.0) for _ in range(100))
    begun = time.process_time()
    room = Room(Capacity(nodes), [crumb.times(600)])
    room.keep(Gang(Resources(1.0), 1024))
    # One by one they took half a minute.
    assert time.process_time() - begun < 1.0
    assert room.count(Gang(Resources(64.0))) == 0


def test_small_workers_go_where_they_leave_the_least_over() -> None:
    """So that a machine with GPUs keeps them for those who need them."""
    capacity = Capacity((Resources(8, 4), Resources(8, 0)))
    room = Room(capacity, [Gang(Resources(1), 8)])
    assert room.count(Gang(Resources(2, 1))) == 4


def test_room_is_kept_on_the_emptiest_machines_which_then_take_nothing_more() -> None:
    small, large = Gang(Resources(1)), Gang(Resources(8))
    room = Room(Capacity((Resources(8), Resources(8))), [small.times(10)])
    # Eight are packed on one machine, two on the other, which then waits to be empty.
    assert (room.count(small), room.count(large)) == (6, 0)
    room.keep(large)
    assert room.count(small) == 0
    # A machine with GPUs stays free for those who need them.
    room = Room(Capacity((Resources(8, 4), Resources(8))))
    room.keep(large)
    assert room.count(Gang(Resources(1, 1))) == 4
    room.keep(Gang(Resources(1, 4)))
    assert room.count(Gang(Resources(1, 1))) == 0
    assert room.count(small) == 7
    room.take(small.times(7))
    assert room.count(small) == 0
    # Where machines are not measured, it is kept in all.
    room = Room(Capacity((), limit=Resources(8)))
    room.keep(small.times(6))
    assert room.count(small) == 2


def test_what_no_machine_could_ever_hold_keeps_nothing_on_any() -> None:
    room = Room(Capacity((Resources(2), Resources(2))))
    room.keep(Gang(Resources(3)))
    assert room.count(Gang(Resources(1))) == 1
