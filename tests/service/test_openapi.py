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
_SETTINGS = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture
def schema(app: FastAPI, spec: Callable[..., dict[str, Any]], dispatcher: Dispatcher) -> Any:
    """The schema, of a service with experiments in several states."""
    client = TestClient(app)
    for name in _NAMES:
        client.post("/experiments", json=spec(name))
    client.post("/experiments/three/cancel")
    dispatcher.round()
    found = schemathesis.openapi.from_asgi("/openapi.json", app)
    # Streams do not end; they have tests of their own.
    return found.exclude(path_regex="/events$|/log$")


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
            if name and mode is GenerationMode.POSITIVE and "name" in case.path_parameters:
                case.path_parameters["name"] = name
            answer = case.call()
            case.validate_response(answer, checks=_CHECKS)
            statuses.setdefault(case.operation.label, set()).add(answer.status_code)

        call()
    assert len(statuses) >= (20 if mode is GenerationMode.POSITIVE else 10)
    seen = set().union(*statuses.values())
    assert seen >= ({200, 202, 404} if mode is GenerationMode.POSITIVE else {422})


def test_calls_in_any_order_answer_what_is_declared(schema: Any, state: State) -> None:
    machine = schema.as_state_machine()

    class Calls(machine):  # type: ignore[misc, valid-type]
        def setup(self) -> None:
            with state.queue.store.database.session() as session:
                for table in reversed(Base.metadata.sorted_tables):
                    session.execute(table.delete())

        def validate_response(self, response: Any, case: Case, **rest: Any) -> None:
            case.validate_response(response, checks=_CHECKS)

    Calls.run(settings=settings(_SETTINGS, max_examples=30, stateful_step_count=8))
