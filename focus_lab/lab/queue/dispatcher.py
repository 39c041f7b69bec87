"""The dispatcher: starts the driver of whoever's turn it is, and sees how each one ends.

It keeps nothing in mind. Every round reads the store and the cluster anew, so that any number of
dispatchers may die at any moment; of several, one leads. That a cluster does not answer is no sign
that its jobs have failed: then nothing is decided.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from structlog.contextvars import bound_contextvars

from focus_lab.errors import StoreError
from focus_lab.lab.lease import is_dead
from focus_lab.lab.queue.admission import Decision, decide
from focus_lab.lab.queue.attempts import Attempt, Attempts
from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.front import could_start, front
from focus_lab.lab.queue.jobs import Jobs, JobStatus, JobsUnreachableError
from focus_lab.lab.queue.leadership import FencedError, Leadership, is_draining
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import QueueState

PAUSE_S = 1.0
"""Between two rounds."""


class Dispatcher:
    """One of those who may lead.

    Args:
        queue: submitted experiments.
        jobs: where drivers run.
        leadership: which dispatcher leads.
        name: of this process, in the audit trail.
        note: told what is worth a line of the log.
    """

    def __init__(
        self,
        queue: Queue,
        jobs: Jobs,
        leadership: Leadership,
        name: str,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._queue, self._jobs, self._leadership = queue, jobs, leadership
        self._name, self._note = name[:64], note
        self._told: dict[str, Any] = {}
        self._troubles: dict[str, str] = {}
        """Experiment -> what was said of it last, until it goes well."""

    def run(self, stop: threading.Event, pause_s: float = PAUSE_S) -> None:
        """Go round until told to stop; what runs then goes on without a dispatcher."""
        trouble = ""
        while not stop.is_set():
            try:
                self.round()
                text = ""
            except (StoreError, JobsUnreachableError) as error:
                # The next round may find them again; nothing was decided. Said once, not each time.
                text = str(error)
            except Exception as error:
                # Whatever it is, experiments would wait for ever without a next round.
                text = f"dispatcher: a round failed, got {type(error).__name__}: {error}"
            if text and text != trouble:
                self._note(text)
            trouble = text
            stop.wait(pause_s)
        try:
            self._leadership.give_up()
        except StoreError as error:
            self._note(str(error))

    @property
    def _attempts(self) -> Attempts:
        """By the policy as it is now."""
        return Attempts(self._queue.store.database, self._queue.policy)

    def round(self) -> None:
        """Look at everything once, and do what is to be done."""
        fence = self._leadership.hold(self._told | {"at": time.time()})
        if fence is None:
            return
        try:
            capacity = capacity_of(self._jobs, self._queue.policy)
            for attempt in self._attempts.open():
                with self._apart(attempt.entry):
                    self._look_after(attempt, fence)
            self._told = {
                "cluster": True,
                "machines": [(node.cpus, node.gpus) for node in capacity.nodes],
                "limit": (capacity.limit.cpus, capacity.limit.gpus) if capacity.limit else None,
            }
            if not is_draining(self._queue.store.database):
                self._admit(capacity, fence)
        except JobsUnreachableError as error:
            self._told = {"cluster": False, "message": str(error)}
            raise
        except FencedError as error:
            self._note(str(error))

    def _admit(self, capacity: Capacity, fence: int) -> None:
        database = self._queue.store.database
        held = sum((one.granted for one in self._attempts.open()), Resources())
        if not could_start(database, capacity.total - held):
            return
        waiting = {entry.id: entry for entry in front(database, capacity)}
        decision = decide_now(self._queue, self._attempts, capacity, list(waiting.values()))
        for grant in decision.grants:
            entry = self._attempts.admit(waiting[grant.id], grant, fence, self._name)
            if entry is not None:
                with self._apart(entry):
                    self._jobs.submit(entry.job_id, entry.id, entry.attempt, entry.name)

    @contextlib.contextmanager
    def _apart(self, entry: Entry) -> Iterator[None]:
        """What fails for one experiment keeps the others from nothing, and is said once.

        Raises:
            JobsUnreachableError: the cluster does nothing for anybody.
            StoreError: nor does the store, or another dispatcher leads.
        """
        text = ""
        with bound_contextvars(**entry.log_ids):
            try:
                yield
            except StoreError:
                raise
            except JobsUnreachableError as error:
                self._jobs.capacity()
                text = str(error)
            except Exception as error:
                text = f"dispatcher: a step failed, got {type(error).__name__}: {error}"
            if text and text != self._troubles.get(entry.id):
                self._note(text)
        if text:
            self._troubles[entry.id] = text
        else:
            self._troubles.pop(entry.id, None)

    def _look_after(self, attempt: Attempt, fence: int) -> None:
        """See to one attempt that holds capacity."""
        entry = attempt.entry
        status = self._jobs.status(entry.job_id)
        stopping = entry.state in (QueueState.CANCELLING, QueueState.PAUSING)
        if status is JobStatus.ENDED:
            # Without a word and with a lease, another process carries it out, or has died so far
            # away that only its lease will tell.
            if stopping or attempt.outcome or not self._is_carried_out(entry):
                self._attempts.settle(entry, fence, self._name)
        elif status is JobStatus.RUNNING:
            # Asked again every round: who asked before may have died before it was heard.
            if stopping:
                self._jobs.stop(entry.job_id)
        elif attempt.began:
            # The cluster does not know the job of a driver that has begun: it was started anew. The
            # driver, if it lives, renews its lease.
            if not self._is_carried_out(entry):
                self._attempts.settle(entry, fence, self._name)
        elif stopping:
            # Not begun: whenever it begins, it will find that nobody wants it.
            self._attempts.settle(entry, fence, self._name)
        elif status is JobStatus.UNKNOWN:
            self._jobs.submit(entry.job_id, entry.id, entry.attempt, entry.name)

    def _is_carried_out(self, entry: Entry) -> bool:
        """Whether a driver lives, as far as the experiment's lease says."""
        store = self._queue.store
        owner = store.lease_owner(entry.id)
        return owner is not None and not is_dead(owner) and store.has_lease(entry.id)


def capacity_of(jobs: Jobs, policy: Policy) -> Capacity:
    """What may be used: the cluster's, unless the policy says otherwise."""
    found = jobs.capacity()
    if policy.capacity is None:
        return found
    return Capacity(found.nodes, Resources(policy.capacity.cpus, policy.capacity.gpus))


def decide_now(
    queue: Queue, attempts: Attempts, capacity: Capacity | None, waiting: list[Entry]
) -> Decision:
    """The decision for the queue as it stands, or for those of it who are given."""
    database = queue.store.database
    with database.reading() as session:
        now = database.now(session)
    return decide(
        [entry.waiting for entry in waiting],
        [one.holding for one in attempts.open()],
        capacity,
        attempts.usage(),
        queue.policy,
        now,
    )
