"""Jobs: where drivers run. The protocol, and an implementation in memory."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from focus_lab.errors import FocusLabError
from focus_lab.lab.queue.capacity import Capacity, Resources


class JobsUnreachableError(FocusLabError):
    """The Ray cluster does not answer; what runs there is left alone until it does."""


class JobStatus(enum.StrEnum):
    """How a job stands."""

    UNKNOWN = "unknown"
    """Nobody has heard of it: it was never submitted, or its cluster has gone."""
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class Jobs(Protocol):
    """Runs drivers. Every call may be repeated.

    Raises:
        JobsUnreachableError: it does not answer; nothing is known then.
    """

    def submit(self, job_id: str, experiment_id: str, attempt: int, name: str) -> None:
        """Start a driver; a second call with the same id does nothing."""

    def status(self, job_id: str) -> JobStatus:
        """How the job stands."""

    def stop(self, job_id: str) -> None:
        """Ask the driver to end; after a while it is killed."""

    def logs(self, job_id: str) -> str:
        """All that the driver has printed."""

    def capacity(self) -> Capacity:
        """What the cluster has."""


@dataclass
class MemoryJob:
    """A job of the jobs in memory."""

    experiment_id: str
    attempt: int
    status: JobStatus = JobStatus.PENDING
    stop_asked: bool = False


@dataclass
class MemoryJobs:
    """Jobs that somebody else plays: for tests and benchmarks.

    Args:
        nodes: of the cluster.
    """

    nodes: tuple[Resources, ...] = (Resources(cpus=2),)
    jobs: dict[str, MemoryJob] = field(default_factory=dict)
    reachable: bool = True
    on_call: Callable[[str], None] = lambda name: None
    """Called before and after every call: where a test lets the caller die."""

    def submit(self, job_id: str, experiment_id: str, attempt: int, name: str) -> None:
        """Keep it, once."""
        self._called("submit")
        self.jobs.setdefault(job_id, MemoryJob(experiment_id, attempt))
        self.on_call("submitted")

    def status(self, job_id: str) -> JobStatus:
        """What was set."""
        self._called("status")
        return self.jobs[job_id].status if job_id in self.jobs else JobStatus.UNKNOWN

    def stop(self, job_id: str) -> None:
        """Note it; like Ray's, it does nothing to a job that has not begun."""
        self._called("stop")
        job = self.jobs.get(job_id)
        if job is not None and job.status is JobStatus.RUNNING:
            job.stop_asked = True
        self.on_call("stopped")

    def logs(self, job_id: str) -> str:
        """There are none."""
        self._called("logs")
        return ""

    def capacity(self) -> Capacity:
        """Of the nodes."""
        self._called("capacity")
        return Capacity(self.nodes)

    def _called(self, name: str) -> None:
        self.on_call(name)
        if not self.reachable:
            raise JobsUnreachableError
