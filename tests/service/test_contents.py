"""What an experiment has brought forth, over REST: nothing but that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
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
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Trial
from service.routes import contents
from service.state import State

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(client: TestClient, spec: Spec, state: State) -> Path:
    """The folder of an experiment with a report."""
    client.post("/experiments", json=spec("one"))
    made = state.queue.store.experiment("one").folder
    (made / "report" / "plots").mkdir(parents=True)
    (made / "report" / "tables").mkdir()
    for name, text in {
        "report.html": "<html>page</html>", "report.md": "# page", "report.json": "{}",
        "report.txt": "a table", "plots/ap.svg": "<svg/>", "tables/cells.csv": "a,b",
        "tables/paper.tex": r"\\begin{tabular}",
    }.items():  # fmt: skip
        (made / "report" / name).write_text(text)
    (made / "secret.txt").write_text("not shown")
    (made / "report" / "weights.pt").write_bytes(b"not shown")
    return made


def test_the_report_comes_in_every_form(client: TestClient, folder: Path) -> None:
    kinds = {
        "html": "text/html", "md": "text/markdown", "json": "application/json",
        "txt": "text/plain", "csv": "text/csv", "tex": "text/x-tex",
    }  # fmt: skip
    for form, kind in kinds.items():
        answer = client.get(f"/experiments/one/report?format={form}")
        assert answer.headers["content-type"].partition(";")[0] == kind
    page = client.get("/experiments/one/report", headers={"accept": "text/html"})
    assert page.text == "<html>page</html>"
    assert "sandbox" in page.headers["content-security-policy"]
    as_json = client.get("/experiments/one/report", headers={"accept": "application/json"})
    assert as_json.json() == {}
    assert client.get("/experiments/one/report?format=exe").status_code == 422


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "text/html"),
        ("", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json, text/plain, */*", "application/json"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/markdown;q=0.9, text/csv;q=0.91", "text/csv"),
        ("text/*;q=0.3, text/html;q=0, application/json;q=0.1", "text/markdown"),
        ("text/html;level=1; Q=0.2, TEXT/CSV ; q=0.3", "text/csv"),
        ("*/*;q=0.1, text/x-tex", "text/x-tex"),
        ("text/html;q=best, text/plain;q=7, nonsense, text/csv", "text/csv"),
    ],
)
def test_the_report_comes_in_the_form_that_is_liked_best(
    client: TestClient, folder: Path, accept: str, kind: str
) -> None:
    answer = client.get("/experiments/one/report", headers={"accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("accept", ["image/png", "*/*;q=0", "text/*;q=0, application/json;q=0.0"])
def test_a_form_that_there_is_not_is_refused(client: TestClient, folder: Path, accept: str) -> None:
    answer = client.get("/experiments/one/report", headers={"accept": accept})
    assert (answer.status_code, answer.json()["code"]) == (406, "not-acceptable")
    assert answer.headers["vary"] == "Accept"
    assert "text/markdown" in answer.json()["detail"]
    # Whoever names a form gets it.
    named = client.get("/experiments/one/report?format=md", headers={"accept": accept})
    assert named.status_code == 200
    assert "vary" not in named.headers


def test_there_may_be_no_report_yet(client: TestClient, spec: Spec) -> None:
    client.post("/experiments", json=spec("two"))
    answer = client.get("/experiments/two/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "no-report")


def test_files_are_those_that_are_meant_to_be_seen(client: TestClient, folder: Path) -> None:
    (folder / "report" / "link.txt").symlink_to(folder / "secret.txt")
    items = client.get("/experiments/one/artifacts").json()["items"]
    paths = [item["path"] for item in items]
    assert "report/plots/ap.svg" in paths
    assert not any("secret" in path or ".pt" in path or "link" in path for path in paths)
    for item in items:
        answer = client.get(f"/experiments/one/artifacts/{item['path']}")
        assert len(answer.content) == item["size"]
        assert answer.headers["content-type"].partition(";")[0] == item["media_type"]
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_folder_that_vanishes_while_it_is_looked_through_has_the_files_that_are_left(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.scandir

    def too_late(path: Any) -> Any:
        # It has been found in its own folder just before.
        if str(path).endswith("plots"):
            shutil.rmtree(path, ignore_errors=True)
        return look(path)

    monkeypatch.setattr(os, "scandir", too_late)
    answer = client.get("/experiments/one/artifacts")
    assert answer.status_code == 200
    paths = [item["path"] for item in answer.json()["items"]]
    assert "report/report.html" in paths
    assert not any("plots" in path for path in paths)


def test_a_file_that_vanishes_once_it_was_found_is_one_that_is_not_there(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (folder / "report").glob("report.*"):
        file.unlink()
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    lost = client.get("/experiments/one/artifacts/report/report.md")
    assert (lost.status_code, lost.json()["code"]) == (404, "no-such-file")
    lost = client.get("/experiments/one/report?format=md")
    assert (lost.status_code, lost.json()["code"]) == (404, "no-report")


@pytest.mark.parametrize(
    "path",
    ["secret.txt", "report/link.txt", "report/weights.pt", "report/../secret.txt", "../../lab.db",
     "/etc/passwd", "%2e%2e/%2e%2e/lab.db", "report//report.html", "..%5C..%5Clab.db", "report",
     "report/%2e%2e/secret.txt", "report/%2e/report.txt", "report%2F%2Freport.txt",
     "report/report.txt%2F", "report/there/secret.txt", "report/a%00.txt",
     f"report/{'a' * 300}.txt"],
)  # fmt: skip
def test_no_path_of_a_client_is_opened(client: TestClient, folder: Path, path: str) -> None:
    (folder / "report" / "link.txt").symlink_to(folder / "secret.txt")
    (folder / "report" / "there").symlink_to(folder)
    answer = client.get(f"/experiments/one/artifacts/{path}")
    # Clients shorten some of these to other addresses by themselves.
    assert answer.status_code in (404, 422)
    assert "not shown" not in answer.text


def test_files_beyond_those_that_are_listed_may_be_fetched(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "/experiments/one/artifacts"
    whole = client.get(url).json()
    assert not whole["more"]
    monkeypatch.setattr(contents, "_MOST_FILES", 2)
    first = client.get(url).json()
    assert first == {"items": whole["items"][:2], "more": True}
    # One file is found without looking at all of them.
    monkeypatch.delattr(contents, "_files")
    for item in whole["items"]:
        assert client.get(f"{url}/{item['path']}").status_code == 200


def test_trials_say_where_they_are(client: TestClient, folder: Path, state: State) -> None:
    stored = state.queue.store.experiment("one")
    [trial] = state.queue.store.trials(stored.id)
    state.queue.store.move(trial, TrialState.RUNNING)
    place = trial_folder(stored, trial)
    place.mkdir(parents=True)
    (place / "progress.json").write_text(
        '{"epoch": 1, "step": 3, "steps": 4, "loss": 2.5, "at": 12.0}'
    )
    [found] = client.get("/experiments/one/trials").json()["items"]
    assert (found["state"], found["attempts"], found["epochs"]) == ("RUNNING", 1, 2)
    assert found["progress"] == {"epoch": 1, "step": 3, "steps": 4, "loss": 2.5, "at": 12.0}
    (place / "progress.json").write_text("half a li")
    [found] = client.get("/experiments/one/trials").json()["items"]
    assert found["progress"] is None


def test_curves_are_those_of_the_tracker(client: TestClient, folder: Path, state: State) -> None:
    stored = state.queue.store.experiment("one")
    [trial] = state.queue.store.trials(stored.id)
    assert client.get("/experiments/one/curves").json() == {"items": {}}
    run = state.tracker.ensure_run("x", trial)
    state.queue.store.set_tracking_run(trial, run)
    for epoch, ap in enumerate([0.1, 0.2], 1):
        state.tracker.log_epoch(run, epoch, {"coco/AP": ap, "loss/total": 1.0})
    found = client.get("/experiments/one/curves", params={"metric": "coco/AP"}).json()["items"]
    assert found == {trial.id: {"coco/AP": [[1, 0.1], [2, 0.2]]}}


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
        monkeypatch.setattr(contents, "FRESH_S", 0.0)
        sleep = asyncio.sleep
        monkeypatch.setattr(contents.asyncio, "sleep", lambda _: sleep(0))
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
            stream = contents._follow_driver(state, entry)
            assert await anext(stream) == await anext(stream) == ""
            dispatcher.round()
            said["1"] = "x" * 2 * contents._TAIL + "begun\n"
            first = await anext(stream)
            assert (len(first), first[-6:]) == (contents._TAIL, "begun\n")
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
            stream = contents._follow_file(state, entry, file)
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
        return [part async for part in contents._followed(said(), is_valid)]

    assert asyncio.run(read()) == ["line 0\n", "line 1\n"]
