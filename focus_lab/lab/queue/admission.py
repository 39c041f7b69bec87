"""Whose turn it is: a pure function from the queue and the cluster to who may start, and why not.

Order: priority, plus an hourly bonus for waiting, minus a malus for whoever has used, or holds,
much. The first in line that only lacks room keeps others from passing once it has waited long.
Whoever is kept by a quota, or could never fit, keeps nobody.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from focus_lab.lab.queue.policy import Policy


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
            int((there + 1e-6) / needed)
            for there, needed in ((self.cpus, gang.cpus), (self.gpus, gang.gpus))
            if needed > 0
        ]
        return max(0, min(parts)) if parts else 0

    def __str__(self) -> str:
        gpus = f"{self.gpus:g} GPU{'' if self.gpus == 1 else 's'}"
        cores = f"{self.cpus:g} core{'' if self.cpus == 1 else 's'}"
        return f"{gpus} and {cores}" if self.gpus else cores


@dataclass(frozen=True)
class Waiting:
    """An experiment in the queue."""

    id: str
    user: str
    project: str
    priority: int
    queued_at: datetime
    gang: Resources
    """What one trial needs at once."""
    worker: Resources
    """What one of its workers needs on one machine."""
    trials: int


@dataclass(frozen=True)
class Holding:
    """An experiment that holds capacity."""

    id: str
    user: str
    project: str
    granted: Resources


@dataclass(frozen=True)
class Capacity:
    """What the cluster has, by machine."""

    nodes: tuple[Resources, ...]
    limit: Resources | None = None
    """Instead of the machines' sum; then a worker is not measured against single machines."""

    @property
    def total(self) -> Resources:
        """All of it."""
        return self.limit or sum(self.nodes, Resources())

    def could_hold(self, waiting: Waiting) -> bool:
        """Whether one trial would fit if nothing else ran."""
        if not self.total.holds(waiting.gang):
            return False
        if self.limit or waiting.worker == Resources():
            return True
        workers = max(
            round(waiting.gang.cpus / waiting.worker.cpus) if waiting.worker.cpus else 0,
            round(waiting.gang.gpus / waiting.worker.gpus) if waiting.worker.gpus else 0,
        )
        return sum(node.count(waiting.worker) for node in self.nodes) >= workers


@dataclass(frozen=True)
class Usage:
    """What was used within the policy's window: by user, and by project."""

    gpu_hours: Mapping[str, float] = field(default_factory=dict)
    project_gpu_hours: Mapping[str, float] = field(default_factory=dict)
    cpu_hours: Mapping[str, float] = field(default_factory=dict)
    """By user; what fair share goes by where there are no GPUs."""


class Reason(enum.StrEnum):
    """Why an experiment waits."""

    NEXT = "next"
    ROOM = "room"
    ORDER = "order"
    TOO_LARGE = "too-large"
    USER_RUNNING = "user-running"
    USER_HOURS = "user-hours"
    PROJECT_RUNNING = "project-running"
    PROJECT_HOURS = "project-hours"
    NO_CLUSTER = "no-cluster"


@dataclass(frozen=True)
class Place:
    """Where an experiment stands in the queue."""

    position: int
    """From 1."""
    reason: Reason
    text: str
    """The reason in a sentence."""


@dataclass(frozen=True)
class Grant:
    """Leave to start."""

    id: str
    trials: int
    """How many trials may run side by side."""
    resources: Resources


@dataclass(frozen=True)
class Decision:
    """What to do now."""

    places: dict[str, Place]
    grants: tuple[Grant, ...]


def score(waiting: Waiting, shares: Mapping[str, float], policy: Policy, now: datetime) -> float:
    """Rank of an experiment; the higher, the earlier.

    Args:
        waiting: the experiment.
        shares: user -> share of the window's use plus share of the cluster held, each in [0, 1].
        policy: weights.
        now: the time.
    """
    hours = max(0.0, (now - waiting.queued_at).total_seconds() / 3600)
    share = shares.get(waiting.user, 0.0)
    return waiting.priority + policy.ageing_per_hour * hours - policy.share_weight * share


def decide(
    waiting: Sequence[Waiting],
    holding: Sequence[Holding],
    capacity: Capacity | None,
    usage: Usage,
    policy: Policy,
    now: datetime,
) -> Decision:
    """Order the queue, say why each one waits, and who may start.

    What is granted never exceeds what is free, and no quota is passed.

    Args:
        waiting: experiments in the queue.
        holding: those that hold capacity.
        capacity: of the cluster; None while it does not answer.
        usage: of the past.
        policy: the rules.
        now: the time.
    """
    shares = _shares(holding, capacity, usage)
    order = sorted(waiting, key=lambda w: (-score(w, shares, policy, now), w.queued_at, w.id))
    if capacity is None or (not capacity.nodes and not capacity.limit):
        text = "the Ray cluster does not answer, or has no machine; it starts when there is one"
        away = {w.id: Place(i, Reason.NO_CLUSTER, text) for i, w in enumerate(order, 1)}
        return Decision(away, ())
    free = capacity.total - sum((held.granted for held in holding), Resources())
    quotas = _QuotaBook(holding, usage, policy)
    places: dict[str, Place] = {}
    grants: list[Grant] = []
    closed_by: int | None = None
    """Position of the one that lets nobody pass."""
    for position, one in enumerate(order, 1):
        verdict = _never(one, capacity) or quotas.forbids(one)
        if verdict is None:
            if closed_by is not None:
                verdict = (
                    Reason.ORDER,
                    f"number {closed_by} in line has waited long for room and is first to get it",
                )
            elif not free.holds(one.gang):
                verdict = (Reason.ROOM, f"needs {one.gang} for a trial, free are {_shown(free)}")
                waited = (now - one.queued_at).total_seconds() / 60
                if waited >= policy.reserve_after_minutes:
                    closed_by = position
        if verdict is not None:
            places[one.id] = Place(position, *verdict)
            continue
        trials = _trials(one, free, capacity, policy, alone=len(order) == 1)
        grant = Grant(one.id, trials, one.gang.times(trials))
        grants.append(grant)
        free = free - grant.resources
        quotas.started(one)
        places[one.id] = Place(position, Reason.NEXT, "starts with the next round")
    return Decision(places, tuple(grants))


def _shares(
    holding: Sequence[Holding], capacity: Capacity | None, usage: Usage
) -> dict[str, float]:
    total = capacity.total if capacity else Resources()
    has_gpus = total.gpus > 0
    used = usage.gpu_hours if has_gpus else usage.cpu_hours
    all_used = sum(used.values())
    shares = {user: hours / all_used for user, hours in used.items() if all_used > 0}
    whole = total.gpus if has_gpus else total.cpus
    for held in holding:
        part = held.granted.gpus if has_gpus else held.granted.cpus
        shares[held.user] = shares.get(held.user, 0.0) + (part / whole if whole else 0.0)
    return shares


def _never(one: Waiting, capacity: Capacity) -> tuple[Reason, str] | None:
    if capacity.could_hold(one):
        return None
    return (
        Reason.TOO_LARGE,
        f"a trial needs {one.gang}, {one.worker} of it on each machine; the whole cluster has "
        f"{_shown(capacity.total)}: lower compute.* of the spec, or add machines",
    )


def _trials(
    one: Waiting, free: Resources, capacity: Capacity, policy: Policy, *, alone: bool
) -> int:
    """How many trials side by side: as many as there is room for, but not all while others wait."""
    most = max(1, min(one.trials, free.count(one.gang)))
    if alone:
        return most
    return max(1, min(most, capacity.total.times(policy.largest_share).count(one.gang)))


def _shown(resources: Resources) -> str:
    return str(Resources(max(0.0, resources.cpus), max(0.0, resources.gpus)))


class _QuotaBook:
    """Who has how much already, this round's starts included."""

    def __init__(self, holding: Sequence[Holding], usage: Usage, policy: Policy) -> None:
        self._usage, self._quotas = usage, policy.quotas
        self._users: dict[str, int] = {}
        self._projects: dict[str, int] = {}
        for held in holding:
            self._count(held)

    def _count(self, one: Holding | Waiting) -> None:
        self._users[one.user] = self._users.get(one.user, 0) + 1
        self._projects[one.project] = self._projects.get(one.project, 0) + 1

    def started(self, one: Waiting) -> None:
        self._count(one)

    def forbids(self, one: Waiting) -> tuple[Reason, str] | None:
        user, project = self._quotas.of_user(one.user), self._quotas.of_project(one.project)
        running, hours = self._users.get(one.user, 0), self._usage.gpu_hours.get(one.user, 0.0)
        if user.running is not None and running >= user.running:
            return (
                Reason.USER_RUNNING,
                f"user {one.user} runs {running} of {user.running} experiments",
            )
        if user.gpu_hours is not None and hours >= user.gpu_hours:
            return (
                Reason.USER_HOURS,
                f"user {one.user} has used {hours:.1f} of {user.gpu_hours:g} GPU-hours",
            )
        running = self._projects.get(one.project, 0)
        hours = self._usage.project_gpu_hours.get(one.project, 0.0)
        if project.running is not None and running >= project.running:
            return (
                Reason.PROJECT_RUNNING,
                f"project {one.project} runs {running} of {project.running} experiments",
            )
        if project.gpu_hours is not None and hours >= project.gpu_hours:
            return (
                Reason.PROJECT_HOURS,
                f"project {one.project} has used {hours:.1f} of {project.gpu_hours:g} GPU-hours",
            )
        return None
