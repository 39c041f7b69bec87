"""Tokens: who may do what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.states import Action
from focus_lab.lab.tables import TokenRow
from focus_lab.lab.tokens import Scope
from service import auth, door
from service.credentials import COOKIE
from service.door import Door
from service.state import State

Headers = Callable[..., dict[str, str]]


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"auth": True}


def test_without_a_token_nothing_but_health_is_answered(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            answer = client.request(method, path.replace("{experiment}", "x"))
            if path.startswith("/health/"):
                assert answer.status_code in (200, 503)
            else:
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "text", ["", "x", "fl_000000000000_" + "a" * 43, "fl_zz", "fl_000000000000_" + "ä" * 43]
)
def test_an_unknown_token_is_refused(client: TestClient, text: str) -> None:
    answer = client.get("/whoami", headers={"Authorization": f"Bearer {text}".encode()})
    assert answer.status_code == 401


def test_a_token_says_who_one_is(client: TestClient, token: Headers) -> None:
    headers = token("ann", Scope.READ, project="fish")
    found = client.get("/whoami", headers=headers).json()
    assert found == {"user": "ann", "project": "fish", "scope": "read"}
    client.cookies.set(COOKIE, headers["Authorization"].removeprefix("Bearer "))
    assert client.get("/whoami").json() == found


def test_scopes_allow_what_they_say(
    client: TestClient, token: Headers, spec: Callable[..., dict[str, Any]]
) -> None:
    read, submit, admin = (token("ann", scope) for scope in Scope)
    assert client.post("/experiments", json=spec("one"), headers=read).status_code == 403
    assert client.post("/experiments", json=spec("one"), headers=submit).status_code == 202
    assert client.get("/experiments/one", headers=read).json()["user"] == "ann"
    assert client.post("/system/drain", headers=submit).status_code == 403
    assert client.post("/system/drain", headers=admin).json()["draining"] is True
    assert client.post("/system/resume", headers=admin).json()["draining"] is False


def test_others_experiments_are_read_and_not_changed(
    client: TestClient, token: Headers, spec: Callable[..., dict[str, Any]]
) -> None:
    ann, bob, root = token("ann"), token("bob"), token("root", Scope.ADMIN)
    client.post("/experiments", json=spec("one"), headers=ann)
    assert client.get("/experiments/one", headers=bob).status_code == 200
    for answer in (
        client.post("/experiments/one/cancel", headers=bob),
        client.patch("/experiments/one", json={"priority": 3}, headers=bob),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "not-yours")
    several = client.post("/experiments/cancel", json={"ids": ["one"]}, headers=bob)
    assert "belongs to ann" in several.json()["items"][0]["problem"]
    taken = client.post("/experiments", json=spec("one"), headers=bob)
    assert (taken.status_code, taken.json()["code"]) == (409, "name-taken")
    assert client.post("/experiments/one/cancel", headers=root).status_code == 202


@pytest.mark.parametrize("policy", [Policy(most_priority=10)])
def test_submitters_are_as_urgent_as_the_policy_lets_them_be(
    client: TestClient, token: Headers, spec: Callable[..., dict[str, Any]], policy: Policy
) -> None:
    ann, root = token("ann"), token("root", Scope.ADMIN)

    def submit(name: str, priority: int, headers: dict[str, str]) -> Any:
        return client.post(f"/experiments?priority={priority}", json=spec(name), headers=headers)

    def change(priority: int, headers: dict[str, str]) -> Any:
        return client.patch("/experiments/one", json={"priority": priority}, headers=headers)

    assert submit("one", 10, ann).status_code == 202
    for answer in (submit("two", 11, ann), change(11, ann)):
        assert (answer.status_code, answer.json()["code"]) == (403, "too-urgent")
        assert "priority: must be at most 10 here, got 11" in answer.json()["detail"]
    assert client.get("/experiments/two", headers=ann).status_code == 404
    assert submit("three", 100, root).status_code == 202
    assert change(99, root).json()["priority"] == 99


def test_an_expired_or_revoked_token_ends_within_a_second(
    client: TestClient, token: Headers, state: State
) -> None:
    seconds = itertools.count()
    state.door = Door(state.tokens, clock=lambda: next(seconds))
    late = token("ann", days=-1)
    assert client.get("/whoami", headers=late).status_code == 401
    fine = token("bob")
    assert client.get("/whoami", headers=fine).status_code == 200
    state.tokens.revoke(next(t.id for t in state.tokens.list() if t.user == "bob"))
    assert client.get("/whoami", headers=fine).status_code == 401


def test_secrets_are_stored_as_hashes_and_uses_are_remembered(
    client: TestClient, token: Headers, state: State
) -> None:
    headers = token("ann")
    # The secret itself may have that letter.
    secret = headers["Authorization"].split("_", 2)[2]
    assert len(secret) == 43
    client.get("/whoami", headers=headers)
    with state.queue.store.database.reading() as session:
        row = session.query(TokenRow).one()
        assert secret not in str(vars(row))
        assert row.used_at is not None


def test_an_open_stream_ends_when_its_token_does(
    address: str, state: State, spec: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_ASK_AGAIN_S", -1.0)
    monkeypatch.setattr(door, "_VALID_S", -1.0)
    headers = {"Authorization": f"Bearer {state.tokens.create('bob', Scope.SUBMIT)}"}
    with (
        httpx2.Client(base_url=address, headers=headers) as http,
        http.stream("GET", "/events", timeout=20) as stream,
    ):
        lines = stream.iter_lines()
        http.post("/experiments", json=spec("one"))
        assert any(line == "event: submitted" for line in lines)
        state.tokens.revoke(next(t.id for t in state.tokens.list() if t.user == "bob"))
        state.queue.act("one", Action.CANCEL, "ann")
        assert [line for line in lines if line.startswith("event:")] == []
