"""A service in this process: a real store, jobs that tests play."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgresql as servers
import pytest
import scenery as scenes
from fastapi import FastAPI
from listener import Listener
from starlette.testclient import TestClient

from focus_lab.lab.queue.capacity import Resources
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.store import Store
from focus_lab.lab.tokens import Scope
from focus_lab.lab.tracking import MemoryTracker
from service.app import create_app
from service.settings import Settings
from service.state import State


@pytest.fixture
def database() -> str:
    """Which kind of database the store is in; test files may offer several.

    FOCUS_LAB_TEST_DATABASE=postgresql runs all of them there.
    """
    return os.environ.get("FOCUS_LAB_TEST_DATABASE", "sqlite")


@pytest.fixture
def store_url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Where the store is."""
    if database == "postgresql":
        schemas: servers.Schemas = request.getfixturevalue("postgresql")
        return schemas.new()
    return f"sqlite:///{tmp_path / 'lab.db'}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def jobs() -> MemoryJobs:
    return MemoryJobs()


@pytest.fixture
def given_settings() -> dict[str, Any]:
    """Settings that a test wants otherwise."""
    return {}


@pytest.fixture
def state(
    store: Store,
    policy: Policy,
    jobs: MemoryJobs,
    given_settings: dict[str, Any],
    tmp_path: Path,
) -> State:
    # The name by which test clients come.
    usual = {"auth": False, "rate_per_s": 1e6, "burst": 10**6, "allowed_hosts": ["testserver"]}
    settings = Settings(home=tmp_path, **usual | given_settings)
    return State(settings, Queue(store, policy), jobs, MemoryTracker)


@pytest.fixture
def app(state: State) -> FastAPI:
    """Without a dispatcher beside it: tests go round themselves."""
    return create_app(state)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as opened:
        yield opened


@pytest.fixture
def listener(app: FastAPI) -> Iterator[Listener]:
    """The service, on a port of its own; it may be stopped and started again there."""
    listening = Listener(app)
    listening.start()
    yield listening
    listening.stop()


@pytest.fixture
def address(listener: Listener) -> str:
    """Where the service is."""
    return listener.address


@pytest.fixture
def dispatcher(state: State, jobs: MemoryJobs) -> Dispatcher:
    leadership = Leadership(state.queue.store.database, "tester")
    return Dispatcher(state.queue, jobs, leadership, "tester")


@pytest.fixture
def token(state: State) -> Callable[..., dict[str, str]]:
    """Headers with a new token of a user."""

    def make(user: str = "ann", scope: Scope = Scope.SUBMIT, **details: Any) -> dict[str, str]:
        made = state.tokens.create(user, scope, **details)
        return {"Authorization": f"Bearer {made}"}

    return make


@pytest.fixture
def spec(tiny_content: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A tiny experiment as the body of a request."""

    def make(name: str = "tiny", **parts: Any) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(json.dumps(tiny_content))
        return content | {"name": name} | parts

    return make


@pytest.fixture
def scenery(
    state: State,
    jobs: MemoryJobs,
    dispatcher: Dispatcher,
    spec: Callable[..., dict[str, Any]],
) -> scenes.Scenery:
    """Plays what drivers and the dispatcher do, on a cluster with GPUs."""
    jobs.nodes = (Resources(cpus=24, gpus=4), Resources(cpus=24, gpus=4))
    return scenes.Scenery(state, jobs, dispatcher, spec)
