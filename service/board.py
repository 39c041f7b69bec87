"""The board: where everybody in the queue stands, looked through anew about once a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping

from focus_lab.errors import StoreError
from focus_lab.lab.queue.admission import Place
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.dispatcher import decide_now
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.leadership import Lead, is_draining, leader
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import QueueState

_FRESH_S = 1.0
_SHARE = 0.05
"""Of the time that may go into looking: a long queue is looked through less often."""
_QUICK_S, _OLD_S = 0.05, 10.0
"""Whoever asks waits for a look that was as quick as this last time, or is so much overdue."""


class Board:
    """Positions and reasons, by the same rule that the dispatcher goes by.

    Args:
        look: looks through the queue; gives everybody's place, in their order.
    """

    def __init__(self, look: Callable[[], Mapping[str, Place]]) -> None:
        self._look = look
        self._places: Mapping[str, Place] = {}
        self._next = self._took = 0.0
        self._looking = threading.Lock()

    def place(self, entry: Entry) -> Place | None:
        """Where an experiment stands; None when it does not wait."""
        if entry.state is not QueueState.QUEUED:
            return None
        return self.places().get(entry.id)

    def places(self) -> Mapping[str, Place]:
        """Everybody's place, in their order; about a second old, in a long queue some seconds."""
        late = time.monotonic() - self._next
        if late > 0 and self._looking.acquire(blocking=not self._next):
            if time.monotonic() < self._next:
                # Somebody has looked while this one waited for the first look.
                self._looking.release()
            elif self._took <= _QUICK_S or late > _OLD_S:
                self._renew()
            else:
                # Nobody waits for so long: until it is done there is what was before.
                threading.Thread(target=self._renew_later, name="board", daemon=True).start()
        return self._places

    def _renew(self) -> None:
        begun = time.monotonic()
        try:
            self._places = self._look()
        finally:
            self._took = time.monotonic() - begun
            self._next = time.monotonic() + max(_FRESH_S, self._took / _SHARE)
            self._looking.release()

    def _renew_later(self) -> None:
        # A store that is away is told to whoever asks it; places are looked for again.
        with contextlib.suppress(StoreError):
            self._renew()

    def look_again(self) -> None:
        """Look through the queue at the next question."""
        self._next = self._took = 0.0


def look_through(queue: Queue, attempts: Attempts) -> dict[str, Place]:
    """Everybody's place now.

    Raises:
        StoreError: the store cannot be read.
    """
    database = queue.store.database
    lead = leader(database)
    decision = decide_now(queue, attempts, _capacity(lead), queue.waiting())
    note = None
    if lead is None:
        note = "no dispatcher runs; start one with `focus-lab serve` or `focus-lab dispatch`"
    elif is_draining(database):
        note = "the dispatcher is draining: nothing starts until an administrator ends it"
    return {
        name: place if note is None else Place(place.position, place.reason, note)
        for name, place in decision.places.items()
    }


def _capacity(lead: Lead | None) -> Capacity | None:
    """What the leading dispatcher saw of the cluster."""
    if lead is None or not lead.told.get("cluster"):
        return None
    if not lead.told["machines"] and not lead.told["limit"]:
        # It has just been started.
        return None
    nodes = tuple(Resources(cpus, gpus) for cpus, gpus in lead.told["machines"])
    limit = lead.told.get("limit")
    return Capacity(nodes, Resources(*limit) if limit else None)
