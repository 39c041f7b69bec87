"""The interface is what /openapi.json says, to the letter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.tables import Base
from focus_lab.lab.tokens import Scope
from service.state import State

pytestmark = pytest.mark.slow

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_NAMES = ("one", "two", "three")
_MOMENT_S = 0.2
_SEEN = ("GET", 200)
_SETTINGS = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture
def schema(
    app: FastAPI,
    spec: Callable[..., dict[str, Any]],
    dispatcher: Dispatcher,
    token: Callable[..., dict[str, str]],
) -> Any:
    """The schema, of a service with experiments in several states."""
    client = TestClient(app, headers=token("ann"))
    for name in _NAMES:
        client.post("/experiments", json=spec(name))
    client.post("/experiments/three/cancel")
    dispatcher.round()
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def _bounded(case: Case) -> dict[str, Any]:
    """How to call what would go on for ever: events for a moment, a log without following it."""
    if case.path.endswith("/log") and "follow" in (case.query or {}):
        case.query["follow"] = "false"
    return {"timeout": _MOMENT_S} if case.path.endswith("/events") else {}


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_call_answers_what_is_declared(schema: Any, mode: GenerationMode) -> None:
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()):
            continue

        # Names are not guessed: every second call is of an experiment that is there.
        @given(case=operation.as_strategy(mode), name=strategies.sampled_from([*_NAMES, None]))
        @_SETTINGS
        def call(case: Case, name: str | None) -> None:
            if name and mode is GenerationMode.POSITIVE and "experiment" in case.path_parameters:
                case.path_parameters["experiment"] = name
            answer = case.call(**_bounded(case))
            case.validate_response(answer, checks=_CHECKS)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)

        call()
    assert len(statuses) >= (20 if mode is GenerationMode.POSITIVE else 10)
    seen = set().union(*statuses.values())
    assert seen >= ({200, 202, 404} if mode is GenerationMode.POSITIVE else {422})


@pytest.mark.parametrize(
    "asked", ["bytes=0-1", "bytes=0-0,2-3", "bytes=99-", "bytes=3-1", "lines=1", "nonsense"]
)
def test_a_part_of_a_file_is_answered_with_the_whole_of_it(
    schema: Any, state: State, asked: str
) -> None:
    folder = state.queue.store.experiment("one").folder / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>page</p>")
    for path, parts in (
        ("/experiments/{experiment}/report", {}),
        ("/experiments/{experiment}/artifacts/{path}", {"path": "report/report.html"}),
    ):
        case = schema[path]["GET"].Case(
            path_parameters={"experiment": "one", **parts}, headers={"Range": asked}
        )
        answer = case.call()
        case.validate_response(answer, checks=_CHECKS)
        assert (answer.status_code, answer.text) == (200, "<p>page</p>")
        assert answer.headers["accept-ranges"] == ["none"]


def test_a_body_that_is_too_large_is_refused_as_declared_wherever_it_goes(schema: Any) -> None:
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.startswith("/health/"):
            continue
        case = operation.Case(
            path_parameters={"experiment": "one", "path": "x.txt"},
            headers={"Content-Length": str(10**9)},
        )
        answer = case.call()
        assert answer.status_code == 413, operation.label
        case.validate_response(answer, checks=_CHECKS)


class TestWithTokens:
    @pytest.fixture
    def given_settings(self) -> dict[str, Any]:
        return {"auth": True}

    def test_every_call_of_everybody_answers_what_is_declared(
        self, schema: Any, token: Callable[..., dict[str, str]]
    ) -> None:
        callers = {
            "nobody": {},
            "a stranger": {"Authorization": f"Bearer fl_000000000000_{'a' * 43}"},
            "a reader": token("ann", Scope.READ),
            "a writer": token("ann", Scope.SUBMIT),
            "somebody else": token("bob", Scope.SUBMIT),
            "an administrator": token("root", Scope.ADMIN),
        }
        seen: dict[str, set[int]] = {name: set() for name in callers}
        for found in schema.get_all_operations():
            operation = found.ok()

            # Twice each, the second time of an experiment that is there; everybody in turn.
            @given(case=operation.as_strategy(GenerationMode.POSITIVE))
            @settings(_SETTINGS, max_examples=1)
            def call(case: Case) -> None:
                for name in ("nope", "one"):
                    if "experiment" in case.path_parameters:
                        case.path_parameters["experiment"] = name
                    for caller, headers in callers.items():
                        # Tokens that schemathesis makes up are a stranger's.
                        case.headers.pop("Authorization", None)
                        case.cookies.clear()
                        answer = case.call(headers=headers, **_bounded(case))
                        case.validate_response(answer, checks=_CHECKS)
                        seen[caller].add(answer.status_code)
                        check(case, caller, answer.status_code)

            def check(case: Case, caller: str, status: int) -> None:
                if case.path.startswith("/health/"):
                    assert status in (200, 503)
                elif caller in ("nobody", "a stranger"):
                    assert status == 401
                elif (caller == "a reader" and case.method != "GET") or (
                    case.path.startswith("/system/") and caller != "an administrator"
                ):
                    assert status == 403
                else:
                    assert status != 401

            call()
        assert seen["a writer"] >= {200, 202, 404}
        assert seen["somebody else"] >= {200, 403, 404}
        assert seen["an administrator"] >= {200, 202, 404}


def test_calls_in_any_order_answer_what_is_declared(
    schema: Any, state: State, spec: Callable[..., dict[str, Any]]
) -> None:
    machine = schema.as_state_machine()
    lives: list[dict[str, list[tuple[str, int]]]] = []

    class Calls(machine):  # type: ignore[misc, valid-type]
        def setup(self) -> None:
            lives.append({})
            with state.queue.store.database.session() as session:
                for table in reversed(Base.metadata.sorted_tables):
                    session.execute(table.delete())

        def before_call(self, case: Case) -> None:
            # Of specs that are made up hardly one is taken: most are replaced by one that is.
            if _submits(case) and len(lives[-1]) < 2 * len(_NAMES):
                case.body, case.media_type = spec(_NAMES[len(lives[-1]) // 2]), "application/json"
                case.query, case.headers = {}, {}
            elif lives[-1] and "experiment" in case.path_parameters:
                # Names are not guessed, and a tag that is made up is that of nothing.
                if case.path_parameters["experiment"] not in lives[-1]:
                    case.path_parameters["experiment"] = next(reversed(lives[-1]))
                case.headers.pop("If-Match", None)

        def get_call_kwargs(self, case: Case) -> dict[str, Any]:
            return _bounded(case)

        def validate_response(self, response: Any, case: Case, **rest: Any) -> None:
            case.validate_response(response, checks=_CHECKS)
            if _submits(case) and response.status_code == 202:
                found = response.json()["experiment"]
                # By either: both name it.
                lives[-1][found["id"]] = lives[-1][found["name"]] = [("submit", 202)]
            else:
                name = case.path_parameters.get("experiment")
                done = case.path.removeprefix("/experiments/{experiment}").strip("/")
                lives[-1].get(name, []).append((f"{case.method} {done}", response.status_code))

    Calls.run(settings=settings(_SETTINGS, max_examples=80, stateful_step_count=12))
    # What was queued was looked at, and then changed: else the calls would tell little.
    whole = [life for run in lives for life in run.values() if _is_whole(life)]
    # Each stands under its id and its name.
    assert len(whole) >= 2 * 5, whole


def _submits(case: Case) -> bool:
    return case.method == "POST" and case.path == "/experiments"


def _is_whole(life: list[tuple[str, int]]) -> bool:
    """Whether an experiment was looked at, in whichever way, and then ended or paused."""
    seen = next((n for n, (call, status) in enumerate(life) if (call[:3], status) == _SEEN), None)
    changed = (("POST cancel", 202), ("POST pause", 202))
    return seen is not None and any(one in life[seen:] for one in changed)
