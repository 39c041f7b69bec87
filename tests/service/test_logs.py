"""Logs of experiments: whole, by their ends, and followed until nothing more can come."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from focus_lab.lab.driver import trial_folder
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.jobs import JobStatus, MemoryJobs
from focus_lab.lab.queue.leadership import drain
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.store import Trial
from service.routes import logs as routes
from service.state import State

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(client: TestClient, spec: Spec, state: State) -> Path:
    """The folder of an experiment that waits."""
    client.post("/experiments", json=spec("one"))
    return state.queue.store.experiment("one").folder


def logged(state: State, number: int = 0) -> tuple[Trial, Path]:
    """A trial of experiment one whose first worker has said something, and its folder of logs."""
    stored = state.queue.store.experiment("one")
    trial = state.queue.store.trials(stored.id)[number]
    logs = trial_folder(stored, trial) / "logs"
    logs.mkdir(parents=True)
    (logs / "rank-0.log").write_text("epoch 1\n")
    return trial, logs


def test_logs_of_workers_and_drivers(
    client: TestClient,
    folder: Path,
    state: State,
    jobs: MemoryJobs,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, logs = logged(state)
    (logs / "rank-x.log").write_text("no rank")
    items = client.get("/experiments/one/logs").json()["items"]
    assert [(item["trial"], item["rank"]) for item in items] == [(None, None), (trial.name, 0)]
    params: dict[str, Any] = {"trial": trial.name}
    assert client.get("/experiments/one/log", params=params).text == "epoch 1\n"
    missing = client.get("/experiments/one/log", params=params | {"rank": 7})
    assert (missing.status_code, missing.json()["code"]) == (404, "no-such-log")
    assert client.get("/experiments/one/log").text == ""
    dispatcher.round()
    monkeypatch.setattr(jobs, "logs", lambda job: f"said by {job[-2:]}")
    assert client.get("/experiments/one/log").text == "--- attempt 1\nsaid by -1"
    # What is followed ends with the experiment.
    client.post("/experiments/one/cancel")
    [job] = jobs.jobs.values()
    job.status = JobStatus.ENDED
    dispatcher.round()
    assert client.get("/experiments/one/log?follow=true").text == "--- attempt 1\nsaid by -1"
    followed = client.get("/experiments/one/log", params=params | {"follow": "true"})
    assert followed.text == "epoch 1\n"


def test_a_trial_with_a_long_name_has_its_log(client: TestClient, spec: Spec, state: State) -> None:
    name = "a" * 500
    sweep = {"cells": {name: {"training.epochs": 3}}, "seeds": [0]}
    client.post("/experiments", json=spec("one", sweep=sweep)).raise_for_status()
    trial, _ = logged(state, -1)
    assert trial.name.startswith(name)
    assert client.get("/experiments/one/log", params={"trial": trial.name}).text == "epoch 1\n"


class TestFollowed:
    """A log is read while its experiment waits, runs, is lost and runs again."""

    @pytest.fixture
    def said(self, jobs: MemoryJobs, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """Number of an attempt -> what its driver has said."""
        said: dict[str, str] = {}

        def logs(job: str) -> str:
            self.asked.append(job.rpartition("-")[2])
            return said.get(job.rpartition("-")[2], "")

        self.asked: list[str] = []
        monkeypatch.setattr(jobs, "logs", logs)
        monkeypatch.setattr(routes, "FRESH_S", 0.0)
        sleep = asyncio.sleep
        monkeypatch.setattr(routes.asyncio, "sleep", lambda _: sleep(0))
        return said

    def test_a_drivers_log_goes_on_from_the_queue_to_the_end_over_lost_attempts(
        self,
        client: TestClient,
        spec: Spec,
        state: State,
        jobs: MemoryJobs,
        dispatcher: Dispatcher,
        said: dict[str, str],
    ) -> None:
        client.post("/experiments", json=spec("one"))
        entry = state.queue.entry("one")

        async def play() -> str:
            stream = routes._follow_driver(state, entry)
            assert await anext(stream) == await anext(stream) == ""
            dispatcher.round()
            said["1"] = "x" * 2 * routes._TAIL + "begun\n"
            first = await anext(stream)
            assert (len(first), first[-6:]) == (routes._TAIL, "begun\n")
            said["1"] += "lost\n"
            assert await anext(stream) == "lost\n"
            before, said["1"] = said["1"], "of a cluster that was started anew\n"
            assert await anext(stream) == f"--- attempt 1\n{said['1']}"
            said["1"] = before
            await anext(stream)
            [job] = jobs.jobs.values()
            job.status = JobStatus.ENDED
            drain(state.queue.store.database, "ann", on=True)
            dispatcher.round()
            assert state.queue.entry(entry.id).state is QueueState.QUEUED
            said["1"] += "last words\n"
            assert await anext(stream) == "last words\n"
            # It has ended, and is not asked for again.
            self.asked.clear()
            assert await anext(stream) == ""
            assert not self.asked
            drain(state.queue.store.database, "ann", on=False)
            dispatcher.round()
            said["2"] = "again\n"
            assert await anext(stream) == "\n--- attempt 2\nagain\n"
            self.asked.clear()
            assert await anext(stream) == ""
            assert self.asked == ["2"]
            state.queue.act("one", Action.PAUSE, "ann")
            list(jobs.jobs.values())[-1].status = JobStatus.ENDED
            dispatcher.round()
            assert state.queue.entry(entry.id).state is QueueState.PAUSED
            said["2"] += "end\n"
            return "".join([part async for part in stream])

        assert asyncio.run(play()) == "end\n"

    def test_a_trials_log_goes_on_while_its_experiment_waits(
        self, client: TestClient, spec: Spec, state: State, said: dict[str, str], tmp_path: Path
    ) -> None:
        client.post("/experiments", json=spec("one"))
        entry = state.queue.entry("one")
        file = tmp_path / "rank-0.log"
        file.write_text("lost\n")

        async def play() -> list[str]:
            stream = routes._follow_file(state, entry, file)
            seen = [await anext(stream), await anext(stream)]
            with file.open("a") as opened:
                opened.write("again\n")
            seen.append(await anext(stream))
            state.queue.act("one", Action.CANCEL, "ann")
            return seen + [part async for part in stream]

        assert asyncio.run(play()) == ["lost\n", "", "again\n", ""]

    @pytest.mark.parametrize("of_trial", [False, True])
    def test_no_proxy_keeps_its_lines_back(
        self, client: TestClient, folder: Path, state: State, of_trial: bool
    ) -> None:
        trial, _ = logged(state)
        client.post("/experiments/one/cancel")
        params = {"follow": "true"} | ({"trial": trial.name} if of_trial else {})
        answer = client.get("/experiments/one/log", params=params)
        assert (answer.status_code, answer.headers["x-accel-buffering"]) == (200, "no")

    def test_our_proxy_passes_streams_on_at_once_and_lets_them_be_silent(self) -> None:
        file = Path(__file__).parents[2] / "service" / "deploy" / "nginx.conf"
        [(paths, settings)] = re.findall(r"location ~ (\S+) \{(.*?)\}", file.read_text(), re.DOTALL)
        for path in ("/events", "/experiments/one/events", "/experiments/one/log"):
            assert re.search(paths, path)
        for path in ("/experiments", "/experiments/log", "/experiments/one/logs", "/ui/log"):
            assert not re.search(paths, path)
        assert "proxy_buffering off;" in settings
        assert "proxy_read_timeout 1d;" in settings


def test_only_so_many_logs_are_followed_at_once(
    client: TestClient, spec: Spec, state: State
) -> None:
    client.post("/experiments", json=spec("one"))
    url = "/experiments/one/log?follow=true"
    with contextlib.ExitStack() as others:
        for _ in range(state.settings.max_streams):
            others.enter_context(state.log_streams.place("ann"))
        refused = client.get(url)
        assert (refused.status_code, refused.json()["code"]) == (503, "too-many-streams")
        assert client.get("/experiments/one/log").status_code == 200
    client.post("/experiments/one/cancel")
    assert client.get(url).status_code == 200
    # Whoever has gone, or was refused, makes room.
    assert client.get(url + "&trial=nope").status_code == 404
    assert state.log_streams.open == 0


def test_a_followed_log_ends_with_its_token() -> None:
    async def said() -> AsyncIterator[str]:
        for number in range(5):
            yield f"line {number}\n"

    checks = iter([True, True, False])

    async def is_valid() -> bool:
        return next(checks)

    async def read() -> list[str]:
        return [part async for part in routes._followed(said(), is_valid)]

    assert asyncio.run(read()) == ["line 0\n", "line 1\n"]
