"""Experiments that wait, clusters and decisions, as tests of admission write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from focus_lab.lab.queue.admission import (
    Decision,
    Holding,
    Usage,
    Waiting,
    decide,
)
from focus_lab.lab.queue.capacity import Capacity, Gang, Resources
from focus_lab.lab.queue.policy import Policy

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def waits(
    name: str = "a",
    cpus: float = 1.0,
    gpus: float = 0.0,
    *,
    workers: int = 1,
    user: str = "alice",
    project: str = "default",
    priority: int = 0,
    minutes: float = 0.0,
    trials: int = 1,
    auto: bool = False,
) -> Waiting:
    gang = Gang(Resources(cpus, gpus), workers)
    since = NOW - timedelta(minutes=minutes)
    return Waiting(name, user, project, priority, since, gang, trials, auto)


def holds(
    cpus: float, gpus: float = 0.0, *, workers: int = 1, name: str = "h", user: str = "x",
    project: str = "x",
) -> Holding:  # fmt: skip
    return Holding(name, user, project, Gang(Resources(cpus, gpus), workers))


def cluster(*nodes: tuple[float, float], limit: tuple[float, float] | None = None) -> Capacity:
    found = tuple(Resources(cpus, gpus) for cpus, gpus in nodes)
    return Capacity(found, Resources(*limit) if limit else None)


def ask(
    *waiting: Waiting,
    on: Capacity | None,
    holding: tuple[Holding, ...] = (),
    usage: Usage | None = None,
    **policy: object,
) -> Decision:
    return decide(waiting, holding, on, usage or Usage(), Policy.model_validate(policy), NOW)


def texts(decision: Decision) -> dict[str, str]:
    return {name: place.text for name, place in decision.places.items()}
