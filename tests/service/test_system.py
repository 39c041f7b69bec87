"""The service about itself, and how its parts are put together."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from focus_lab.client import Client
from focus_lab.client.client import RefusedError, ServiceError
from focus_lab.client.models import Health
from focus_lab.errors import FocusLabError, SpecError, StoreUnreachableError, UserError
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.specs.experiment import ExperimentSpec
from service.readiness import Readiness
from service.state import State

Spec = Callable[..., dict[str, Any]]


def test_the_service_starts_without_torch_ray_and_mlflow() -> None:
    program = (
        "import sys, service.serve, service.app; "
        "print([m for m in ('torch', 'ray', 'mlflow', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_readiness_says_what_is_missing(
    client: TestClient, dispatcher: Dispatcher, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness._FRESH_S", 0.0)
    assert client.get("/health/live").json() == {"status": "ok"}
    first = client.get("/health/ready")
    assert (first.status_code, first.json()["status"]) == (200, "degraded")
    assert "none runs" in first.json()["checks"]["dispatcher"]["text"]
    dispatcher.round()
    dispatcher.round()
    assert client.get("/health/ready").json()["status"] == "ok"

    def away() -> bool:
        raise StoreUnreachableError("store: is away")

    monkeypatch.setattr(state.queue.store.database, "is_current", away)
    last = client.get("/health/ready")
    assert (last.status_code, last.json()["status"]) == (503, "unready")


def test_a_service_without_its_mlflow_is_ready_and_says_what_is_missing(state: State) -> None:
    database = state.queue.store.database

    def look(uri: str | None) -> Health:
        return asyncio.run(Readiness(database, tracking_uri=uri).health())

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        away = look(f"http://127.0.0.1:{port}")
        # Whoever asks waits a second at most.
        assert time.monotonic() - begun < 0.9
    assert (away.status, away.checks["mlflow"].ok) == ("degraded", False)
    assert away.checks["store"].ok

    class Strict(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Strict) as server:
        threading.Thread(target=server.handle_request).start()
        there = look(f"http://127.0.0.1:{server.server_port}/")
    assert there.checks["mlflow"].ok
    # A file is not looked at.
    assert "mlflow" not in look("sqlite:///mlflow.db").checks
    assert "mlflow" not in look(None).checks


def test_readiness_is_looked_at_once_a_second_however_many_ask(
    client: TestClient, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, looks, now = state.queue.store.database, 0, [0.0]

    def look() -> bool:
        nonlocal looks
        looks += 1
        return True

    monkeypatch.setattr(database, "is_current", look)
    readiness = Readiness(database, lambda: now[0])

    async def ask() -> None:
        for now[0], expected in ((0.0, 1), (0.9, 1), (1.0, 2)):
            await asyncio.gather(*(readiness.health() for _ in range(20)))
            assert looks == expected

    asyncio.run(ask())
    monkeypatch.setattr("service.readiness._FRESH_S", 60.0)
    assert [client.get("/health/ready").status_code for _ in range(3)] == [200] * 3
    assert looks == 3


def test_the_schema_is_that_of_specs(client: TestClient) -> None:
    assert client.get("/schema").json() == ExperimentSpec.model_json_schema()


def test_metrics_count_what_there_is(
    client: TestClient, spec: Spec, dispatcher: Dispatcher
) -> None:
    client.post("/experiments", json=spec("one"))
    dispatcher.round()
    dispatcher.round()
    text = client.get("/metrics").text
    assert 'focus_lab_experiments{state="STARTING"} 1.0' in text
    assert "focus_lab_held_cpus 1.0" in text
    assert 'focus_lab_requests_total{method="POST",status="202"} 1.0' in text
    system = client.get("/system").json()
    assert system["cluster"] == {
        "nodes": 1, "cpus": 2.0, "gpus": 0.0, "held_cpus": 1.0, "held_gpus": 0.0,
    }  # fmt: skip
    assert system["counts"] == {"STARTING": 1}


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/experiments/one", "application/problem+json"), ("/ui/experiments/one", "text/html")],
)
def test_an_unexpected_error_is_answered_in_its_form_without_its_insides(
    app: FastAPI, state: State, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("secret insides")

    monkeypatch.setattr(state.queue, "entry", broken)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get(path)
    assert answer.status_code == 500
    assert answer.headers["content-type"].startswith(kind)
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"] in answer.text


def test_a_store_that_is_away_is_said_so(
    client: TestClient, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnreachableError("store: is away")

    monkeypatch.setattr(state.queue, "entry", away)
    answer = client.get("/experiments/one")
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unreachable")
    assert answer.headers["retry-after"] == "5"


class TestClientOfThisService:
    """The typed client, against the app itself."""

    @pytest.fixture
    def remote(self, client: TestClient) -> Client:
        # The test client is one of the same kind: only its transport is taken.
        return Client("http://testserver", transport=client._transport, pause=lambda s: None)

    def test_every_call_reads_what_the_service_says(
        self, remote: Client, spec: Spec, state: State, tmp_path: Path
    ) -> None:
        assert remote.plan(spec("one")).trials == 1
        sent = remote.submit(spec("one"), priority=3, key="k")
        assert (sent.created, sent.experiment.priority) == (True, 3)
        assert remote.submit(spec("one"), priority=3, key="k").experiment.id == sent.experiment.id
        for number in range(3):
            remote.submit(spec(f"more-{number}"))
        found = [one.name for one in remote.experiments(state="QUEUED")]
        assert found == ["more-2", "more-1", "more-0", "one"]
        assert remote.experiment("one").spec["name"] == "one"
        assert remote.set_priority("one", -3).priority == -3
        assert [trial.state for trial in remote.trials("one")] == ["PENDING"]
        assert remote.curves("one") == {}
        assert remote.log("one") == ""
        report = state.queue.store.experiment("one").folder / "report"
        report.mkdir(parents=True)
        (report / "report.txt").write_text("a table")
        assert remote.report("one", "txt") == b"a table"
        [artifact] = remote.artifacts("one")
        remote.download("one", artifact.path, tmp_path / "new" / "copy.txt")
        assert (tmp_path / "new" / "copy.txt").read_text() == "a table"
        assert remote.pause("one").state == "PAUSED"
        assert remote.resume("one").state == "QUEUED"
        assert remote.cancel("one").is_terminal
        assert remote.retry("one").state == "QUEUED"
        outcomes = remote.cancel_several(["one", "nope"])
        assert [outcome.state for outcome in outcomes] == ["CANCELLED", None]
        assert remote.whoami().user == "local"
        assert remote.system().counts == {"QUEUED": 3, "CANCELLED": 1}

    def test_errors_are_those_of_the_command_line(self, remote: Client, spec: Spec) -> None:
        with pytest.raises(SpecError) as wrong:
            remote.submit(spec("one", extra=1, other=2))
        assert len(wrong.value.problems) == 2
        with pytest.raises(RefusedError, match="no such name"):
            remote.experiment("nope")
        with pytest.raises(UserError, match="must be a name"):
            remote.experiment("../x")
        with pytest.raises(UserError, match="must be an address"):
            Client("localhost:8000")

    def test_a_service_that_does_not_answer_is_tried_again_and_then_told(self) -> None:
        told: list[str] = []
        with (
            Client(
                "http://127.0.0.1:9", patience_s=2.0, note=told.append, pause=lambda s: None
            ) as nowhere,
            pytest.raises(ServiceError, match="start it with `focus-lab serve`"),
        ):
            nowhere.system()
        assert len(told) == 1
        assert issubclass(ServiceError, FocusLabError)
