"""The board: where everybody in the queue stands, looked through anew about once a second."""

from __future__ import annotations

import threading
import time

from focus_lab.lab.queue.admission import Capacity, Place, Resources
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.dispatcher import decide_now
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.leadership import Lead, is_draining, leader
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import QueueState

_FRESH_S = 1.0
_SHARE = 0.05
"""Of the time that may go into looking: a long queue is looked through less often."""


class Board:
    """Positions and reasons, by the same rule that the dispatcher goes by.

    Args:
        queue: submitted experiments.
        attempts: what holds capacity.
    """

    def __init__(self, queue: Queue, attempts: Attempts) -> None:
        self._queue, self._attempts = queue, attempts
        self._places: dict[str, Place] = {}
        self._next = 0.0
        self._looking = threading.Lock()

    def place(self, entry: Entry) -> Place | None:
        """Where an experiment stands; None when it does not wait."""
        if entry.state is not QueueState.QUEUED:
            return None
        return self.places().get(entry.id)

    def places(self) -> dict[str, Place]:
        """Everybody's place, about a second old, in a queue of ten thousand some seconds."""
        # Whoever comes while another one looks takes what there was before.
        if time.monotonic() > self._next and self._looking.acquire(blocking=not self._next):
            try:
                begun = time.monotonic()
                self._look()
                took = time.monotonic() - begun
                self._next = time.monotonic() + max(_FRESH_S, took / _SHARE)
            finally:
                self._looking.release()
        return self._places

    def look_again(self) -> None:
        """Look through the queue at the next question."""
        self._next = 0.0

    def _look(self) -> None:
        database = self._queue.store.database
        lead = leader(database)
        decision = decide_now(self._queue, self._attempts, _capacity(lead), self._queue.waiting())
        note = None
        if lead is None:
            note = "no dispatcher runs; start one with `focus-lab serve` or `focus-lab dispatch`"
        elif is_draining(database):
            note = "the dispatcher is draining: nothing starts until an administrator ends it"
        self._places = {
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
