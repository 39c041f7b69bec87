"""What every request meets first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from service.app import create_app
from service.door import Door
from service.guard import Bucket
from service.settings import Settings
from service.state import State


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"max_body": 2000, "allowed_hosts": ["lab.example", "testserver"]}


def test_every_answer_has_safe_headers_and_its_id(client: TestClient) -> None:
    for path in ("/experiments", "/nope", "/health/live", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        assert len(headers["x-request-id"]) == 16
    given = client.get("/whoami", headers={"x-request-id": "my-request-1"})
    assert given.headers["x-request-id"] == "my-request-1"
    hostile = client.get("/whoami", headers={"x-request-id": "a b<script>"})
    assert "script" not in hostile.headers["x-request-id"]


def test_a_large_body_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post(
        "/experiments", content=b"x" * 2001, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_so_is_one_that_does_not_say_how_long_it_is(client: TestClient) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 100

    answer = client.post(
        "/experiments", content=endless(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


def test_only_known_names_are_answered(client: TestClient) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "lab.example"):
        assert client.get("/whoami", headers={"host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", ""):
        answer = client.get("/whoami", headers={"host": host})
        assert (answer.status_code, answer.json()["code"]) == (400, "unknown-host")


def test_only_the_names_of_this_machine_are_known_by_themselves(tmp_path: Path) -> None:
    with contextlib.closing(Store(f"sqlite:///{tmp_path / 'lab.db'}")) as store:
        settings = Settings(home=tmp_path, auth=False)
        client = TestClient(create_app(State(settings, Queue(store), MemoryJobs(), MemoryTracker)))
        statuses = [
            client.get("/whoami", headers={"host": host}).status_code
            for host in ("localhost", "testserver")
        ]
    assert statuses == [200, 400]


def test_pages_of_other_sites_change_nothing(client: TestClient) -> None:
    foreign = {"origin": "https://evil.example"}
    answer = client.post("/experiments/x/cancel", headers=foreign)
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign-origin")
    own = {"origin": "http://testserver"}
    assert client.post("/experiments/x/cancel", headers=own).status_code == 404


def test_a_method_that_is_not_there_is_a_problem(client: TestClient) -> None:
    answer = client.put("/experiments")
    assert answer.status_code == 405
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["allow"]


class TestWithALowRate:
    @pytest.fixture
    def given_settings(self) -> dict[str, Any]:
        return {"rate_per_s": 0.001, "burst": 3}

    def test_too_many_requests_are_told_to_wait(self, client: TestClient) -> None:
        answers = [client.get("/whoami") for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert answers[-1].headers["retry-after"] == "1"
        # Who watches over the service is not meant.
        assert client.get("/health/live").status_code == 200

    def test_made_up_tokens_do_not_help(self, client: TestClient) -> None:
        statuses = [
            client.get("/whoami", headers={"Authorization": f"Bearer {n}"}).status_code
            for n in range(40)
        ]
        assert statuses.count(200) == 3


class TestWithALowRateAndTokens:
    @pytest.fixture
    def given_settings(self) -> dict[str, Any]:
        return {"auth": True, "rate_per_s": 0.001, "burst": 3}

    def test_a_token_is_one_however_it_is_shown(
        self, client: TestClient, token: Callable[..., dict[str, str]]
    ) -> None:
        made = token("ann")["Authorization"].removeprefix("Bearer ")
        shown: list[list[tuple[str, str]]] = [
            [("authorization", f"{scheme}{made}")] for scheme in ("Bearer ", "bearer ", "BEARER ")
        ]
        shown += [[("cookie", f"focus_lab_token={made}{more}")] for more in ("", "; a=1", "; a=2")]
        # The first counts for whoever looks at one of them.
        shown.append([("authorization", f"Bearer {made}"), ("authorization", "Bearer x")])
        statuses = [client.get("/whoami", headers=headers).status_code for headers in shown]
        # One of its address, on which it is found to be valid, and three of its own.
        assert statuses == [200] * 4 + [429] * 3

    def test_made_up_tokens_leave_the_others_of_their_address_alone(
        self, client: TestClient, token: Callable[..., dict[str, str]]
    ) -> None:
        ann = token("ann")
        assert client.get("/whoami", headers=ann).status_code == 200
        statuses = [
            client.get("/whoami", headers={"Authorization": f"Bearer {n}"}).status_code
            for n in range(5)
        ]
        assert statuses == [401, 401, 429, 429, 429]
        assert client.get("/whoami", headers=ann).status_code == 200

    def test_a_token_that_is_revoked_is_a_stranger_again(
        self, client: TestClient, token: Callable[..., dict[str, str]], state: State
    ) -> None:
        ann = token("ann")
        assert client.get("/whoami", headers=ann).status_code == 200
        [known] = state.tokens.list()
        state.tokens.revoke(known.id)
        state.door = Door(state.tokens)
        statuses = [client.get("/whoami", headers=ann).status_code for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]


def test_a_bucket_fills_with_time() -> None:
    now = 0.0
    bucket = Bucket(2.0, 4, lambda: now)
    assert [bucket.take("a") for _ in range(5)] == [True] * 4 + [False]
    assert bucket.take("b")
    now = 1.0
    assert [bucket.take("a") for _ in range(3)] == [True, True, False]
    now = 100.0
    assert [bucket.take("a") for _ in range(5)] == [True] * 4 + [False]
