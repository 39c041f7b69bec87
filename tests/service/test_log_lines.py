"""Lines of the log say what they are about: requests, experiments."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from focus_lab.lab.log_lines import configure_logs
from focus_lab.lab.queue.jobs import JobsUnreachableError, MemoryJobs
from service import serve
from service.state import State

Spec = Callable[..., dict[str, Any]]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Reads the lines that were written meanwhile."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    before = structlog.get_config()
    configure_logs()
    # Loggers that are used meanwhile must not keep this file.
    structlog.configure(cache_logger_on_first_use=False)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    structlog.configure(**before)


def test_a_request_has_its_id_in_the_log(
    client: TestClient, log: Callable[[], list[dict[str, Any]]]
) -> None:
    answer = client.get("/whoami")
    [line] = [line for line in log() if line.get("path") == "/whoami"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert "experiment" not in line


def test_a_request_about_an_experiment_says_which(
    client: TestClient, spec: Spec, log: Callable[[], list[dict[str, Any]]]
) -> None:
    made = client.post("/experiments", json=spec("one")).json()["experiment"]
    client.get("/experiments/one")
    client.post(f"/experiments/{made['id']}/cancel")
    client.get("/experiments/none")
    client.get("/experiments")
    found = [line.get("experiment") for line in log() if line["event"] == "request"]
    assert found == [made["id"], "one", made["id"], "none", None]


def test_what_a_dispatcher_says_of_an_experiment_carries_its_id(
    client: TestClient,
    spec: Spec,
    state: State,
    jobs: MemoryJobs,
    monkeypatch: pytest.MonkeyPatch,
    log: Callable[[], list[dict[str, Any]]],
) -> None:
    made = client.post("/experiments", json=spec("one")).json()["experiment"]

    def refuse(job_id: str, *_: Any) -> Any:
        raise JobsUnreachableError(f"{job_id}: cannot be started")

    monkeypatch.setattr(jobs, "submit", refuse)
    dispatcher = serve.make_dispatcher(state.queue, jobs)
    # It is refused when it is admitted, and when it is looked after; said once.
    dispatcher.round()
    dispatcher.round()
    [line] = [line for line in log() if line["event"] == "dispatcher"]
    assert (line["experiment"], line["attempt"]) == (made["id"], 1)
    assert "cannot be started" in line["text"]
    # The next line is about something else.
    structlog.get_logger().info("other")
    assert "experiment" not in log()[-1]


def test_a_drivers_log_is_shown_as_it_was_said(
    client: TestClient, spec: Spec, state: State, jobs: MemoryJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.post("/experiments", json=spec("one")).json()["experiment"]
    serve.make_dispatcher(state.queue, jobs).round()
    line = json.dumps({"event": "driver", "text": "epoch 1", "experiment": made["id"]})
    monkeypatch.setattr(jobs, "logs", lambda job: f"{line}\nsaid by Ray\n")
    shown = client.get("/experiments/one/log").text
    assert shown == "--- attempt 1\nepoch 1\nsaid by Ray\n"
