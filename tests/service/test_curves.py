"""Curves: MLflow may be slow or away, and nothing but curves waits for it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from focus_lab.errors import TrackerUnreachableError
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Trial
from focus_lab.lab.tracking import Curves, MissingRunError, Tracker
from service import curves
from service.curves import CurveReader
from service.state import State

Spec = Callable[..., dict[str, Any]]


def trial(name: str, state: TrialState = TrialState.SUCCEEDED, run: str | None = None) -> Trial:
    return Trial(
        name, "e", "f", "baseline", 0, 0, {}, {}, state, 1, 1, None, None, run or name, None, None
    )


class Counted:
    """A tracker that counts how often it is asked; it may be away."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.away = False

    def curves(self, run_id: str, names: Collection[str] | None = None) -> Curves:
        self.asked.append(run_id)
        if self.away:
            raise TrackerUnreachableError("MLflow: away")
        if run_id == "purged":
            raise MissingRunError("no such run")
        return {"coco/AP": [(1, 0.1), (2, 0.25)]}


@pytest.fixture
def tracker() -> Counted:
    return Counted()


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def read(tracker: Counted, now: list[float]) -> Callable[..., dict[str, Any]]:
    """Reads curves of trials."""
    whole: Any = tracker
    reader = CurveReader(lambda: whole, lambda: now[0])

    def call(*trials: Trial, names: list[str] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(asyncio.run(reader.read(trials, names)))["items"]
        return found

    return call


def test_those_of_trials_that_have_succeeded_are_read_once(
    read: Callable[..., dict[str, Any]], tracker: Counted
) -> None:
    trials = trial("done"), trial("runs", TrialState.RUNNING), trial("lost", TrialState.FAILED)
    expected = {name: {"coco/AP": [[1, 0.1], [2, 0.25]]} for name in ("done", "runs", "lost")}
    assert read(*trials) == read(*trials) == expected
    assert tracker.asked == ["done", "runs", "lost", "runs", "lost"]
    read(trials[0], names=["coco/AP"])
    read(trials[0], names=["coco/AP"])
    assert tracker.asked[5:] == ["done"]


def test_a_run_that_is_gone_leaves_the_others(read: Callable[..., dict[str, Any]]) -> None:
    assert read(trial("purged"), trial("there")).keys() == {"there"}


def test_no_more_are_kept_than_there_is_room_for(
    read: Callable[..., dict[str, Any]], tracker: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "_MOST_POINTS", 6)
    read(trial("a"), trial("b"), trial("a"), trial("c"))
    tracker.asked.clear()
    read(trial("a"))
    read(trial("c"))
    assert tracker.asked == []
    read(trial("b"))  # the longest unread
    assert tracker.asked == ["b"]


def test_that_it_is_away_is_told_for_some_seconds_without_asking_again(
    read: Callable[..., dict[str, Any]], tracker: Counted, now: list[float]
) -> None:
    read(trial("kept"))
    tracker.asked.clear()
    tracker.away = True
    for _ in range(3):
        with pytest.raises(TrackerUnreachableError, match="MLflow: away"):
            read(trial("one"), trial("two"))
    assert tracker.asked == ["one"]
    # What is known needs nobody.
    assert read(trial("kept"))
    tracker.away = False
    now[0] += 11.0
    assert read(trial("one"))


def test_whoever_waits_for_curves_keeps_nothing_else_waiting(
    client: TestClient, spec: Spec, state: State
) -> None:
    client.post("/experiments", json=spec("one"))
    [made] = state.queue.store.trials(state.queue.entry("one").id)
    state.queue.store.set_tracking_run(made, "run")
    goes_on = threading.Event()

    def slow() -> Tracker:
        assert goes_on.wait(30)
        raise TrackerUnreachableError("MLflow: away")

    state.make_tracker = slow
    with ThreadPoolExecutor(20) as others:
        # More than there are threads for all requests.
        waiting = [others.submit(client.get, "/experiments/one/curves") for _ in range(20)]
        try:
            assert client.get("/experiments").status_code == 200
            assert client.post("/experiments/one/cancel").is_success
            assert not any(one.done() for one in waiting)
        finally:
            goes_on.set()
        assert {one.result().status_code for one in waiting} == {503}
