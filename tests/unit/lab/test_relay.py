"""What becomes of trials whose attempts fail under Ray Tune; no cluster is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from focus_lab.lab.executor import TrialJob
from focus_lab.lab.failure import LOST, NO_ROOM, OUT_OF_MEMORY, PREEMPTED, STALLED, Failure
from focus_lab.lab.recovery import RECORD, Recovery
from focus_lab.lab.train_workers import EPOCH, METRICS
from focus_lab.lab.tune_trial import ATTEMPT, FAILURE, HISTORY, OUTCOME, TRIAL_ID
from focus_lab.specs.training import ComputeSpec
from focus_lab.training.watchdog import stall_file

pytestmark = pytest.mark.slow  # importing Ray takes seconds

HISTORY_OF_TWO = [(1, {"coco/AP": 0.1}), (2, {"coco/AP": 0.2})]
DIED = "The actor died unexpectedly before finishing this task."


class Told:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.events.append((name, *arguments))


class Trial:
    """As Tune sees one."""

    def __init__(self, trial_id: str, folder: Path, status: str = "RUNNING") -> None:
        self.config: dict[str, Any] = {TRIAL_ID: trial_id}
        self.status, self.num_failures = status, 0
        self.error_file = str(folder / f"{trial_id}.error")

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def dies(self, said: str = DIED, *, counted: bool = True) -> None:
        """As Tune writes it down."""
        self.num_failures += counted
        with Path(self.error_file).open("a") as file:
            file.write(f"Failure # {self.num_failures} (occurred at noon)\n{said}\n")


class Tune:
    """Two trials, a relay, and Tune's calls; one failed attempt after the other."""

    def __init__(self, folder: Path, **compute: Any) -> None:
        from focus_lab.lab.relay import GaveUp, Order, Relay

        spec = ComputeSpec(**compute)
        self.told, self.now, self.folder = Told(), 0.0, folder
        jobs = {name: TrialJob(name, name, {}, folder / name) for name in ("a", "b")}
        recoveries = {name: Recovery(job.folder, spec, 4) for name, job in jobs.items()}
        listener: Any = self.told
        self.relay = Relay(listener, jobs, recoveries, spec, lambda: self.now)
        self.order, self.stopper = Order(self.relay), GaveUp(self.relay)
        self.a, self.b = Trial("a", folder), Trial("b", folder, "PENDING")
        self.stopped: list[Trial] = []

    def says(self, trial: Trial, **result: Any) -> None:
        self.relay.on_trial_result(0, [], trial, result)

    def ends(self, trial: Trial) -> list[Any]:
        """An attempt ends; returns what the listener heard of it."""
        before = len(self.told.events)
        controller = SimpleNamespace(
            get_trials=lambda: [self.a, self.b], stop_trial=self.stopped.append
        )
        self.order.on_trial_error(controller, trial)
        self.order.on_trial_add(controller, trial)
        return self.told.events[before:]

    def step(self) -> None:
        self.relay.on_step_end(0, [self.a, self.b])

    def record(self, trial: str) -> list[tuple[str, str]]:
        rows = json.loads((self.folder / trial / RECORD).read_text())
        return [(row["kind"], row["action"]) for row in rows]


def test_the_relay_tells_the_listener_each_thing_once(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    tune.relay.on_trial_start(0, [], tune.a)
    tune.says(tune.a, **{EPOCH: 1, METRICS: {"x": 1.0}})
    tune.says(tune.a, training_iteration=1)
    tune.says(tune.a, **{OUTCOME: "success", HISTORY: HISTORY_OF_TWO})
    # Tune repeats the last result of a function that has returned.
    tune.says(tune.a, **{OUTCOME: "success", HISTORY: HISTORY_OF_TWO})
    # A process may die after its trial's last word: then there is nothing more to do.
    tune.a.dies()
    tune.ends(tune.a)
    tune.relay.on_trial_start(0, [], tune.a)
    assert tune.told.events == [
        ("started", "a"),
        ("epoch", "a", 1, {"x": 1.0}),
        ("succeeded", "a", HISTORY_OF_TWO),
    ]
    assert tune.relay.open == {"b"}
    assert tune.stopped == [tune.a]


def test_a_worker_that_is_lost_too_often_fails_its_trial_and_all_is_recorded(
    tmp_path: Path,
) -> None:
    tune = Tune(tmp_path, max_failures=2)
    events = []
    for _ in range(3):
        tune.a.dies()
        events += tune.ends(tune.a)
    assert [event[0] for event in events] == ["again", "again", "failed"]
    failure = events[-1][2]
    assert failure == Failure(
        LOST,
        f"the worker was lost, got {DIED}; that was once more than compute.max_failures allows, 2",
    )
    assert tune.record("a") == [(LOST, "retry"), (LOST, "retry"), (LOST, "fail")]
    assert tune.stopped == [tune.a]
    # Another trial has a budget of its own.
    tune.b.dies()
    assert tune.ends(tune.b)[0][0] == "again"


def test_what_an_attempt_said_of_itself_counts_in_the_same_budget(tmp_path: Path) -> None:
    tune = Tune(tmp_path, max_failures=1, workers=2)
    tune.says(tune.a, **{FAILURE: {"kind": LOST, "message": "worker 1 was lost"}})
    tune.a.dies("AttemptFailedError")
    [(name, _, failure)] = tune.ends(tune.a)
    assert name == "again"
    assert failure.message == "worker 1 was lost; going on, 0 more times at most"
    # The process that waited for the workers: there is no other budget that it would begin.
    tune.a.dies()
    [(name, _, failure)] = tune.ends(tune.a)
    assert (name, failure.kind) == ("failed", LOST)


def test_machines_that_are_taken_back_have_a_budget_and_an_end(tmp_path: Path) -> None:
    tune = Tune(tmp_path, max_preemptions=2, max_failures=0)
    events = []
    for _ in range(3):
        # Tune does not count them.
        tune.a.dies(counted=False)
        events += tune.ends(tune.a)
    assert [event[0] for event in events] == ["again", "again", "failed"]
    assert tune.record("a") == [(PREEMPTED, "retry"), (PREEMPTED, "retry"), (PREEMPTED, "fail")]


def test_a_hung_worker_is_named_and_its_stacks_outlive_the_next_attempt(tmp_path: Path) -> None:
    tune = Tune(tmp_path, max_failures=1)
    files = []
    for number in range(2):
        files.append(stall_file(tmp_path / "a" / "attempts" / str(number), 0))
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text('{"doing": "waiting for a batch", "seconds": 61}\nThread ...')
        tune.a.dies()
        [(_, _, failure)] = tune.ends(tune.a)
        assert failure.kind == STALLED
        assert f"the stacks are in {files[-1]}" in failure.message
        assert tune.a.config.get(ATTEMPT, {"number": 1})["number"] == 1
    assert all(file.exists() for file in files)


def test_a_process_that_ray_ended_for_its_memory_is_no_lost_worker(tmp_path: Path) -> None:
    tune = Tune(tmp_path, halve_on_out_of_memory=True)
    tune.a.dies("Task was killed due to the node running low on memory.")
    [(name, _, failure)] = tune.ends(tune.a)
    assert (name, failure.kind) == ("again", OUT_OF_MEMORY)
    assert tune.a.config[ATTEMPT] == {"number": 1, "parts": 2}
    # The memory of an earlier attempt explains no later one.
    tune.a.dies()
    assert tune.ends(tune.a)[0][2].kind == LOST


def test_what_nothing_can_mend_is_recorded_too(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    told = {"kind": "DataError", "message": "data: broken"}
    tune.says(tune.a, **{OUTCOME: FAILURE, FAILURE: told})
    assert tune.told.events == [("failed", "a", Failure("DataError", "data: broken"))]
    assert tune.record("a") == [("DataError", "fail")]


def no_room(tune: Tune, trial: Trial) -> Any:
    tune.says(trial, **{FAILURE: {"kind": NO_ROOM, "message": "no room"}})
    trial.dies("AttemptFailedError")
    [event] = tune.ends(trial)
    return event


def test_waiting_for_a_trial_beside_it_is_no_failure(tmp_path: Path) -> None:
    tune = Tune(tmp_path, workers=2, max_failures=1)
    tune.b.status = "RUNNING"
    for _ in range(4):
        assert no_room(tune, tune.a)[0] == "again"
    assert tune.record("a") == [(NO_ROOM, "wait")] * 4


def test_two_that_both_wait_do_not_wait_for_each_other_for_ever(tmp_path: Path) -> None:
    tune = Tune(tmp_path, workers=2, max_failures=1)
    tune.b.status = "RUNNING"
    events = []
    while len(events) < 20 and tune.relay.open:
        for trial in (tune.a, tune.b):
            if trial.config[TRIAL_ID] in tune.relay.open:
                events.append(no_room(tune, trial)[0])
    assert not tune.relay.open
    # One that has trained meanwhile takes room again.
    (tmp_path / "later").mkdir()
    tune = Tune(tmp_path / "later", workers=2, max_failures=0)
    tune.b.status = "RUNNING"
    no_room(tune, tune.a)
    tune.says(tune.a, **{EPOCH: 1, METRICS: {}})
    assert no_room(tune, tune.b)[0] == "again"


def test_trials_that_nothing_has_room_for_fail_after_a_while(tmp_path: Path) -> None:
    tune = Tune(tmp_path, placement_timeout_s=60)
    tune.a.status = "PENDING"
    for tune.now in (0.0, 59.0):
        tune.step()
    assert tune.relay.open == {"a", "b"}
    # One that runs gives room back some day.
    tune.a.status = "RUNNING"
    tune.now = 61.0
    tune.step()
    tune.a.status = "PENDING"
    for tune.now in (62.0, 121.0):
        tune.step()
    assert not tune.stopper.stop_all()
    tune.now = 122.0
    tune.step()
    assert tune.stopper.stop_all()
    assert [(name, trial_id) for name, trial_id, _ in tune.told.events] == [
        ("failed", "a"),
        ("failed", "b"),
    ]
    failure = tune.told.events[0][2]
    assert failure.kind == NO_ROOM
    assert failure.message.startswith(
        "compute.placement_timeout_s: no machine had room for a worker, got none within 60 s"
    )
    assert tune.record("b") == [(NO_ROOM, "fail")]


def test_a_trial_that_tune_ends_by_itself_is_not_left_open(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    tune.a.dies("no such placement group")
    tune.relay.on_trial_error(0, [], tune.a)
    tune.relay.on_trial_error(0, [], tune.a)
    [(name, _, failure)] = tune.told.events
    assert (name, failure.kind) == ("failed", LOST)
    assert failure.message.endswith("could not be started, got no such placement group")


def test_the_listeners_own_error_is_kept(tmp_path: Path) -> None:
    tune = Tune(tmp_path)

    def broken(*_: object) -> None:
        raise KeyError("store")

    tune.told.started = broken  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        tune.relay.on_trial_start(0, [], tune.a)
    assert isinstance(tune.relay.error, KeyError)
