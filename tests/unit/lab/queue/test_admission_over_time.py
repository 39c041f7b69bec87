"""Rounds of admission: time goes by, experiments end, others come; nobody starves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from asking import NOW, cluster, waits

from focus_lab.lab.queue.admission import (
    Holding,
    Usage,
    Waiting,
    decide,
)
from focus_lab.lab.queue.capacity import Capacity
from focus_lab.lab.queue.policy import Policy


@dataclass
class Cluster:
    """A queue played minute by minute: every experiment runs for a given time."""

    capacity: Capacity
    policy: Policy
    minutes_each: int
    at: int = 0
    waiting: list[Waiting] = field(default_factory=list)
    running: dict[str, tuple[Holding, int]] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    """Core-hours by user."""

    def minute(self, *arrivals: Waiting) -> None:
        now = NOW + timedelta(minutes=self.at)
        self.waiting += [replace(one, queued_at=now) for one in arrivals]
        self.running = {name: (h, end) for name, (h, end) in self.running.items() if end > self.at}
        holding = [held for held, _ in self.running.values()]
        usage = Usage(cpu_hours=self.used)
        decision = decide(self.waiting, holding, self.capacity, usage, self.policy, now)
        by_id = {one.id: one for one in self.waiting}
        for grant in decision.grants:
            one = by_id.pop(grant.id)
            held = Holding(one.id, one.user, one.project, one.gang.times(grant.trials))
            self.running[one.id] = held, self.at + self.minutes_each
            self.started[one.id] = self.at
        for held, _ in self.running.values():
            self.used[held.user] = self.used.get(held.user, 0.0) + held.gang.total.cpus / 60
        self.waiting = list(by_id.values())
        self.at += 1

    def play(self, minutes: int, arrivals: Callable[[int], list[Waiting]]) -> None:
        while self.at < minutes:
            self.minute(*arrivals(self.at))


def important(minute: int) -> list[Waiting]:
    """One more important experiment every minute, of a user who has nothing yet."""
    return [waits(f"important-{minute}", user=f"user-{minute}", priority=5, trials=1)]


@pytest.mark.parametrize(("ageing", "starts"), [(10.0, True), (1e-9, False)])
def test_nobody_starves_among_endless_arrivals_of_higher_priority(
    ageing: float, starts: bool
) -> None:
    # Two and a half times as much comes as four cores can do.
    policy = Policy(ageing_per_hour=ageing, share_weight=0.0)
    played = Cluster(cluster((4.0, 0.0)), policy, minutes_each=10)
    played.minute(*(waits(f"first-{n}", user="root", priority=9) for n in range(4)))
    played.minute(waits("patient", priority=0))
    # Whoever comes 5 / 10 h later is behind it: 30 are before it, each 10 minutes on 1 of 4 cores.
    played.play(130, important)
    assert ("patient" in played.started) is starts
    if starts:
        assert played.started["patient"] <= 30 + 30 * 10 / 4 + 10


@pytest.mark.parametrize(("reserve", "starts"), [(10.0, True), (1e9, False)])
@pytest.mark.parametrize(
    ("machines", "small_cpus", "large_cpus", "every"),
    [
        (((4.0, 0.0),) * 2, 1.0, 4.0, 3),
        # In all there is room beside it for a small one, which would take a machine that it needs.
        (((8.0, 0.0),) * 4, 5.0, 5.0, 8),
    ],
)
def test_a_large_trial_is_not_starved_by_small_ones(
    machines: tuple[tuple[float, float], ...], small_cpus: float, large_cpus: float, every: int,
    reserve: float, starts: bool,
) -> None:  # fmt: skip
    policy = Policy(reserve_after_minutes=reserve, share_weight=0.0)
    played = Cluster(cluster(*machines), policy, minutes_each=30)

    def small(minute: int) -> list[Waiting]:
        one = waits(f"small-{minute}", cpus=small_cpus, user=f"user-{minute}")
        return [one] if minute % every == 0 else []

    played.play(60, small)
    played.minute(waits("large", cpus=large_cpus, workers=2))
    played.play(400, small)
    assert ("large" in played.started) is starts
    if starts:
        # Ten minutes until it keeps others from passing, thirty until the last one has ended.
        assert played.started["large"] <= 60 + 10 + 30 + 1
        # And afterwards all goes on.
        assert max(played.started.values()) >= played.started["large"] + 30


def test_a_user_who_comes_later_waits_for_one_end_and_not_for_all_of_anothers_queue() -> None:
    played = Cluster(cluster((2.0, 0.0)), Policy(), minutes_each=60)
    played.minute(*(waits(f"many-{n:02d}", user="bob") for n in range(50)))
    played.play(90, lambda minute: [])
    played.minute(waits("one", user="alice"))
    played.play(200, lambda minute: [])
    assert played.started["one"] == 120
