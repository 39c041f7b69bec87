"""The queue as a state machine: whatever people do and whatever dies, its invariants hold."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from world import Fate, World, fated

from focus_lab.lab.queue.queue import NotAllowedError
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

pytestmark = pytest.mark.slow

MOST = 2
"""Experiments that a user may run."""
RATIOS = ((0.2,), (0.2, 0.5), (0.2, 0.5, 1.0))


class QueueMachine(RuleBasedStateMachine):
    """People, machines and time."""

    submitted = Bundle("submitted")
    make_store: Callable[[], Store]
    make_spec: Callable[..., ExperimentSpec]
    clock: Any
    fate: Fate

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        vars(self.fate).update(vars(Fate(chance=random.Random(seed))))
        self.store = self.make_store()
        quotas = {"default_user": {"running": MOST}}
        self.world = World(self.store, self.clock, self.fate, cores=8.0, quotas=quotas)
        self.numbers = itertools.count()
        self.names: set[str] = set()
        self.cancelled: set[str] = set()
        self.versions: Counter[str] = Counter()
        self.finished: set[str] = set()

    # What people do

    @rule(
        target=submitted,
        user=st.sampled_from(["alice", "bob"]),
        priority=st.integers(-3, 3),
        ratios=st.sampled_from(RATIOS),
    )
    def submit(self, user: str, priority: int, ratios: tuple[float, ...]) -> str:
        name = f"e{next(self.numbers)}"
        spec = self.make_spec(name, *ratios)

        def ask() -> Any:
            return self.world.queue.submit(
                spec,
                plan(spec),
                Path(name),
                Submitter(user, "default"),
                priority=priority,
                key=name,
            )

        while not self.world.may_die(ask):
            pass  # whoever gets no answer asks again, with the same key
        self.names.add(name)
        return name

    @rule(name=submitted, action=st.sampled_from(list(Action)))
    def act(self, name: str, action: Action) -> None:
        if action is Action.CANCEL:
            self.cancelled.add(name)
        with contextlib.suppress(NotAllowedError):
            self.world.may_die(lambda: self.world.queue.act(name, action, "alice"))

    @rule(name=submitted, priority=st.integers(-3, 3))
    def prioritise(self, name: str, priority: int) -> None:
        with contextlib.suppress(NotAllowedError):
            self.world.may_die(lambda: self.world.queue.set_priority(name, priority, "alice"))

    # What happens

    @rule(ticks=st.integers(1, 6))
    def time_goes_by(self, ticks: int) -> None:
        for _ in range(ticks):
            self.world.tick()

    @rule(after=st.integers(1, 12))
    def somebody_dies(self, after: int) -> None:
        self.fate.at = self.fate.points + after
        self.world.tick()

    @precondition(lambda self: len(self.world.dispatchers) < 3)
    @rule()
    def another_dispatcher_comes(self) -> None:
        self.world.dispatchers.append(self.world.new_dispatcher())

    @rule(survivors=st.sampled_from([0.0, 0.5, 1.0]))
    def the_cluster_is_started_anew(self, survivors: float) -> None:
        self.world.restart_cluster(survivors)

    @rule(ticks=st.integers(1, 20))
    def the_cluster_does_not_answer(self, ticks: int) -> None:
        self.world.jobs.reachable = False
        self.time_goes_by(ticks)
        self.world.jobs.reachable = True

    @rule(ticks=st.integers(1, 20))
    def the_store_is_away(self, ticks: int) -> None:
        self.fate.store_away = True
        self.time_goes_by(ticks)
        self.fate.store_away = False

    @precondition(lambda self: self.world.drivers)
    @rule(which=st.integers(0, 99), ticks=st.integers(1, 30))
    def a_driver_falls_asleep(self, which: int, ticks: int) -> None:
        self.world.drivers[which % len(self.world.drivers)].sleeps = ticks

    # What holds at any moment

    @invariant()
    def nothing_is_lost(self) -> None:
        with self.fate.asleep():
            assert {entry.name for entry in self.world.entries()} == self.names

    @invariant()
    def capacity_and_quotas_are_kept(self) -> None:
        with self.fate.asleep():
            self.world.check()
            running = Counter(one.entry.user for one in self.world.attempts.open())
        assert all(count <= MOST for count in running.values())

    @invariant()
    def versions_only_rise_and_what_is_done_stays_done(self) -> None:
        with self.fate.asleep():
            for entry in self.world.entries():
                assert entry.version >= self.versions[entry.id]
                self.versions[entry.id] = entry.version
            done = {
                trial.id
                for entry in self.world.entries()
                for trial in self.store.trials(entry.id)
                if trial.state is TrialState.SUCCEEDED
            }
        assert done >= self.finished
        self.finished = done

    def teardown(self) -> None:
        """Nobody starves: in peace everything comes to its end."""
        if not hasattr(self, "store"):
            return
        # Whoever sleeps wakes up, and what is paused is resumed; at worst one after the other.
        self.world.until_rest(ticks=60 + 40 * len(self.names))
        for entry in self.world.entries():
            assert self.world.all_is_done(entry) or (
                entry.state is QueueState.CANCELLED and entry.name in self.cancelled
            )
        assert self.world.carried_out == {}
        self.store.close()


def test_nothing_is_lost_doubled_starved_or_beyond_capacity(
    clock: Any,
    make_spec: Callable[..., ExperimentSpec],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    Store(f"sqlite:///{tmp_path / 'empty.db'}").close()
    number = itertools.count()

    def make_store() -> Store:
        copy = shutil.copy(tmp_path / "empty.db", tmp_path / f"{next(number)}.db")
        return Store(f"sqlite:///{copy}")

    fate = fated(monkeypatch)

    def machine() -> QueueMachine:
        made = QueueMachine()
        made.make_store, made.make_spec, made.clock, made.fate = make_store, make_spec, clock, fate
        return made

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            database=None,
            # A failure is short enough to be read, and takes minutes to be made shorter.
            phases=[Phase.generate],
        ),
    )
