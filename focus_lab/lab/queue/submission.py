"""A submission: who wants which experiment, how urgently, and the rows that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from focus_lab.errors import UserError
from focus_lab.lab.database import storable
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.changes import told_of
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Told
from focus_lab.lab.queue.states import QueueState
from focus_lab.specs.base import fingerprint
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan, trials_in_all

MOST_PRIORITY = 1000
"""In either direction: without an end to it, somebody could wait without one."""


@dataclass(frozen=True)
class Submitter:
    """Who submits, and for which project."""

    user: str
    project: str = "default"


@dataclass(frozen=True)
class Submission:
    """An experiment as it is handed in.

    Raises:
        UserError: the priority is none.
    """

    spec: ExperimentSpec
    plan: Plan
    """Its whole plan."""
    folder: Path
    """Where its files are to be."""
    submitter: Submitter
    priority: int = 0
    """The higher, the earlier, from -1000 to 1000."""
    key: str | None = None
    """The request's Idempotency-Key."""

    def __post_init__(self) -> None:
        check_priority(self.priority)

    @cached_property
    def mark(self) -> str:
        """Fingerprint of the spec."""
        return fingerprint(self.spec.model_dump(mode="json"))

    @cached_property
    def request(self) -> str:
        """Fingerprint of all that is asked for: the same key must mean the same."""
        return fingerprint([self.mark, self.priority, self.submitter.project])

    def values(self, now: datetime) -> dict[str, Any]:
        """What a submission sets in the experiment's row of the queue, new or not."""
        gang = _gang(self.spec)
        return {
            "description": storable(self.spec.description),
            "project": self.submitter.project,
            "fingerprint": self.mark,
            "priority": self.priority,
            "state": QueueState.QUEUED,
            "losses": 0,
            "trials": trials_in_all(self.spec, self.plan),
            "gang_cpus": gang.total.cpus,
            "gang_gpus": gang.total.gpus,
            "worker_cpus": gang.worker.cpus,
            "worker_gpus": gang.worker.gpus,
            "auto_gpus": _auto_gpus(self.spec),
            "queued_at": now,
            "ended_at": None,
            "message": None,
        }

    def new_values(self, experiment_id: str, now: datetime) -> dict[str, Any]:
        """The whole row, of one that was never submitted before."""
        return self.values(now) | {
            "experiment_id": experiment_id, "name": self.spec.name, "user": self.submitter.user,
            "version": 0, "attempt": 0, "submitted_at": now, "started_at": None,
        }  # fmt: skip

    def event(self, entry: Entry) -> Told:
        """What is told of it."""
        return told_of(entry, "submitted", self.submitter.user, {"priority": self.priority})


def check_priority(priority: int) -> None:
    """See that a priority is one.

    Raises:
        UserError: it is not.
    """
    if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise UserError(
            f"priority: is too far from 0, got {priority}; allowed are {-MOST_PRIORITY} to "
            f"{MOST_PRIORITY}"
        )


def _gang(spec: ExperimentSpec) -> Gang:
    """What a trial needs at once."""
    compute = spec.compute
    gpus = compute.gpus_per_worker or (1.0 if compute.device == "cuda" else 0.0)
    return Gang(Resources(compute.cpus_per_worker, gpus), compute.workers)


def _auto_gpus(spec: ExperimentSpec) -> float:
    """GPUs that a trial takes where there are any: what the executor does with `device: auto`."""
    compute = spec.compute
    return float(compute.workers) if compute.device == "auto" and not compute.gpus_per_worker else 0
