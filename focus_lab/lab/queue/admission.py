"""Whose turn it is: a pure function from the queue and the cluster to who may start, and why not.

Order: priority, plus an hourly bonus for waiting, minus a malus for whoever has used, holds, or was
just granted much. For whoever lacks nothing but room, and has waited long, room is kept: others
pass only with what it does not need. Of those who need the same it is kept for as many as the
cluster has room for at once. Whoever is kept by a quota, or could never fit, keeps nobody.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from focus_lab.lab.queue.capacity import Capacity, Gang, Resources, Room
from focus_lab.lab.queue.policy import Policy


@dataclass(frozen=True)
class Waiting:
    """An experiment in the queue."""

    id: str
    user: str
    project: str
    priority: int
    queued_at: datetime
    gang: Gang
    """What one trial needs at once."""
    trials: int
    auto_gpus: bool = False
    """Whether each worker takes a GPU wherever the cluster has any."""

    def on(self, capacity: Capacity) -> Waiting:
        """With what it needs on this cluster."""
        if not self.auto_gpus or not capacity.has_gpus:
            return self
        worker = Resources(self.gang.worker.cpus, 1.0)
        return replace(self, gang=Gang(worker, self.gang.workers), auto_gpus=False)


@dataclass(frozen=True)
class Holding:
    """An experiment that holds capacity."""

    id: str
    user: str
    project: str
    gang: Gang
    """All its workers, of all trials."""


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
    """By position."""
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
    line = _in_turn(waiting, shares, policy, now)
    if capacity is None or (not capacity.nodes and not capacity.limit):
        text = "the Ray cluster does not answer, or has no machine; it starts when there is one"
        away = {w.id: Place(i, Reason.NO_CLUSTER, text) for i, w in enumerate(line, 1)}
        return Decision(away, ())
    held_now = [held.gang for held in holding]
    room, left = Room(capacity, held_now), Room(capacity, held_now)
    """What is free, and what of it is not kept for those who have waited long for room."""
    quotas = _QuotaBook(holding, usage, policy)
    places: dict[str, Place] = {}
    grants: list[Grant] = []
    others = _Others(waiting, capacity, quotas)
    provided: Counter[Gang] = Counter()
    """How often room for a gang was given or kept."""
    first: int | None = None
    """Position of the first for whom room is kept."""
    for position, turn in enumerate(line, 1):
        one = turn.on(capacity)
        others.had_turn(one)
        verdict = _never(one, capacity) or quotas.forbids(one)
        if verdict is None and not left.count(one.gang):
            verdict = (
                (Reason.ORDER, f"room is kept for number {first} in line, which has waited long")
                if room.count(one.gang)
                else (Reason.ROOM, _too_little(room, one.gang))
            )
            others.lack_room = True
            waited = (now - one.queued_at).total_seconds() / 60
            long = waited >= policy.reserve_after_minutes
            if long and provided[one.gang] < capacity.empty.count(one.gang):
                left.keep(one.gang)
                provided[one.gang] += 1
                first = first or position
        if verdict is not None:
            places[one.id] = Place(position, *verdict)
            continue
        quotas.started(one)
        share = policy.largest_share if others.could_start() else 1.0
        most = capacity.total.times(share).count(one.gang.total)
        trials = max(1, min(one.trials, most, left.count(one.gang)))
        granted = one.gang.times(trials)
        grants.append(Grant(one.id, trials, granted.total))
        room.take(granted)
        left.take(granted)
        provided[one.gang] += trials
        shares[one.user] = shares.get(one.user, 0.0) + _part(granted.total, capacity)
        places[one.id] = Place(position, Reason.NEXT, "starts with the next round")
    return Decision(places, tuple(grants))


def _in_turn(
    waiting: Sequence[Waiting], shares: Mapping[str, float], policy: Policy, now: datetime
) -> Iterator[Waiting]:
    """By falling score. As a user's share grows meanwhile, what else is the user's falls behind."""

    def rank(one: Waiting) -> tuple[float, datetime, str]:
        return -score(one, shares, policy, now), one.queued_at, one.id

    # One share moves all that is a user's alike: within it the order stays.
    lines: dict[str, list[Waiting]] = {}
    for one in sorted(waiting, key=rank, reverse=True):
        lines.setdefault(one.user, []).append(one)
    first = [(*rank(line[-1]), line.pop()) for line in lines.values()]
    heapq.heapify(first)
    while first:
        *_, one = heapq.heappop(first)
        yield one
        if lines[one.user]:
            following = lines[one.user].pop()
            heapq.heappush(first, (*rank(following), following))


def _shares(
    holding: Sequence[Holding], capacity: Capacity | None, usage: Usage
) -> dict[str, float]:
    has_gpus = capacity is not None and capacity.total.gpus > 0
    used = usage.gpu_hours if has_gpus else usage.cpu_hours
    all_used = sum(used.values())
    shares = {user: hours / all_used for user, hours in used.items() if all_used > 0}
    for held in holding:
        part = _part(held.gang.total, capacity) if capacity else 0.0
        shares[held.user] = shares.get(held.user, 0.0) + part
    return shares


def _part(granted: Resources, capacity: Capacity) -> float:
    """Of the cluster: of its GPUs, or of its cores where it has none."""
    total = capacity.total
    if total.gpus > 0:
        return granted.gpus / total.gpus
    return granted.cpus / total.cpus if total.cpus else 0.0


def _never(one: Waiting, capacity: Capacity) -> tuple[Reason, str] | None:
    if capacity.empty.count(one.gang):
        return None
    there = _shown(capacity.total, one.gang.total)
    if capacity.limit:
        has = f"the queue may use {there} in all"
    else:
        machines = len(capacity.nodes)
        has = f"the whole cluster has {there} on {machines} machine{'' if machines == 1 else 's'}"
    return (
        Reason.TOO_LARGE,
        f"a trial needs {one.gang.total}, with {one.gang.worker} for each worker on one machine; "
        f"{has}: lower compute.* of the spec, or add machines",
    )


def _too_little(room: Room, gang: Gang) -> str:
    free = _shown(room.free, gang.total)
    if not room.free.holds(gang.total):
        return f"a trial needs {gang.total}; free now: {free}"
    return (
        f"a trial needs {gang.total}, with {gang.worker} for each worker on one machine; free now: "
        f"{free}, spread over the machines"
    )


def _shown(there: Resources, wanted: Resources) -> str:
    """Without the crumbs of rounding; that there is no GPU is said to whoever wants one."""
    rounded = Resources(max(0.0, round(there.cpus, 4)), max(0.0, round(there.gpus, 4)))
    return f"0 GPUs and {rounded}" if wanted.gpus and not rounded.gpus else str(rounded)


class _Others:
    """Whether anybody is left who could start: whoever could not is nobody to leave room for."""

    def __init__(self, waiting: Sequence[Waiting], capacity: Capacity, quotas: _QuotaBook) -> None:
        self._left = iter(waiting)
        self._next = next(self._left, None)
        self._capacity, self._quotas = capacity, quotas
        self._had_turn: set[str] = set()
        self.lack_room = False
        """Whether somebody before lacks room only."""

    def had_turn(self, one: Waiting) -> None:
        self._had_turn.add(one.id)

    def could_start(self) -> bool:
        """Whether anybody else could, now or as soon as there is room."""
        # Forward only: within a round quotas become tighter and never wider.
        while self._next is not None and self._is_out(self._next.on(self._capacity)):
            self._next = next(self._left, None)
        return self.lack_room or self._next is not None

    def _is_out(self, one: Waiting) -> bool:
        return (
            one.id in self._had_turn
            or not self._capacity.empty.count(one.gang)
            or self._quotas.forbids(one) is not None
        )


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
        # Whoever has used up the GPU-hours may still use cores.
        wants_gpus = one.gang.worker.gpus > 0
        running, hours = self._users.get(one.user, 0), self._usage.gpu_hours.get(one.user, 0.0)
        if user.running is not None and running >= user.running:
            return (
                Reason.USER_RUNNING,
                f"user {one.user} runs {running} of {user.running} experiments",
            )
        if wants_gpus and user.gpu_hours is not None and hours >= user.gpu_hours:
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
        if wants_gpus and project.gpu_hours is not None and hours >= project.gpu_hours:
            return (
                Reason.PROJECT_HOURS,
                f"project {one.project} has used {hours:.1f} of {project.gpu_hours:g} GPU-hours",
            )
        return None
