"""What a cluster has, by machine, and what fits into what is free of it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_MANY = 1e9
"""More than any cluster has room for; whoever asks for crumbs of a core would fit more often."""


@dataclass(frozen=True)
class Resources:
    """Cores and GPUs."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)

    def times(self, count: float) -> Resources:
        """So many of them."""
        return Resources(self.cpus * count, self.gpus * count)

    def holds(self, other: Resources) -> bool:
        """Whether there is room for `other`; fractions of GPUs add up with rounding."""
        return other.cpus <= self.cpus + 1e-6 and other.gpus <= self.gpus + 1e-6

    def count(self, gang: Resources) -> int:
        """How often `gang` fits."""
        parts = [
            (there + 1e-6) / needed
            for there, needed in ((self.cpus, gang.cpus), (self.gpus, gang.gpus))
            if needed > 0
        ]
        return max(0, int(min(*parts, _MANY))) if parts else 0

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU{'' if self.gpus == 1 else 's'}"
        cores = f"{self.cpus:g} core{'' if self.cpus == 1 else 's'}"
        return f"{gpus} and {cores}" if self.gpus else cores


@dataclass(frozen=True)
class Gang:
    """Equal workers that must run at once; each needs its part on one machine."""

    worker: Resources
    workers: int = 1

    @property
    def total(self) -> Resources:
        """Of all workers."""
        return self.worker.times(self.workers)

    def times(self, count: int) -> Gang:
        """So many of them, as one."""
        return Gang(self.worker, self.workers * count)


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, by machine."""

    nodes: tuple[Resources, ...]
    limit: Resources | None = None
    """Instead of the machines' sum; then a worker is not measured against single machines."""

    @cached_property
    def total(self) -> Resources:
        """All of it."""
        return self.limit or sum(self.nodes, Resources())

    @property
    def has_gpus(self) -> bool:
        """Whether a trial that takes a GPU where there is one will find any."""
        return self.total.gpus > 0 or any(node.gpus > 0 for node in self.nodes)

    @cached_property
    def empty(self) -> Room:
        """The room that there is while nothing runs."""
        return Room(self)


class Room:
    """What is free, in all and on each machine.

    Where Ray has put what runs is not asked: it is taken to be packed well, the largest workers
    first, each where least is left over.

    Args:
        capacity: of the cluster.
        held: what runs.
    """

    def __init__(self, capacity: Capacity, held: Iterable[Gang] = ()) -> None:
        self._whole = capacity.nodes
        self.free = capacity.total
        """In all."""
        self._machines = None if capacity.limit else list(capacity.nodes)
        self._counts: dict[Gang, int] = {}
        for gang in sorted(held, key=lambda one: (one.worker.gpus, one.worker.cpus), reverse=True):
            self.take(gang)

    def take(self, gang: Gang) -> None:
        """Give room away. A worker for which no machine has enough is on one that is not known."""
        self.free = self.free - gang.total
        self._counts.clear()
        machines = self._machines
        if machines is None:
            return
        left = gang.workers
        while left:
            large = [place for place, free in enumerate(machines) if free.count(gang.worker)]
            if not large:
                return
            fullest = min(large, key=lambda place: (machines[place].gpus, machines[place].cpus))
            # It stays the fullest until no more fit.
            count = min(left, machines[fullest].count(gang.worker))
            machines[fullest] = machines[fullest] - gang.worker.times(count)
            left -= count

    def keep(self, gang: Gang) -> None:
        """Keep room that is not free yet: nothing more fits where it is to be until then."""
        self.free = self.free - gang.total
        self._counts.clear()
        machines, worker = self._machines, gang.worker
        if machines is None:
            return

        def fullness(place: int) -> tuple[float, float]:
            free = machines[place]
            return (-free.gpus, -free.cpus) if worker.gpus else (-free.cpus, free.gpus)

        places = [place for place, whole in enumerate(self._whole) if whole.count(worker)]
        if all(machines[place].cpus <= 0 for place in places):
            # Everything there is kept already, as for most of those in a long line.
            return
        emptiest = [(fullness(place), place) for place in places]
        heapq.heapify(emptiest)
        for _ in range(gang.workers):
            place = emptiest[0][1]
            machines[place] = machines[place] - worker
            heapq.heapreplace(emptiest, (fullness(place), place))

    def count(self, gang: Gang) -> int:
        """How many gangs fit side by side."""
        if gang not in self._counts:
            # Of ten thousand that wait, most need the same.
            self._counts[gang] = min(self.free.count(gang.total), self._by_machine(gang))
        return self._counts[gang]

    def _by_machine(self, gang: Gang) -> int:
        if self._machines is None or gang.worker == Resources():
            return int(_MANY)
        # A worker does not stretch over machines: what is left over on each is of no use to it.
        return sum(machine.count(gang.worker) for machine in self._machines) // gang.workers
