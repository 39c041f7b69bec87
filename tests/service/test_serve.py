"""How the service is started: who needs a token, and what its log may say."""

from __future__ import annotations

import io
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from starlette.testclient import TestClient
from typer.testing import CliRunner

from focus_lab.cli import app as commands
from focus_lab.lab.log_lines import configure_logs
from service import serve
from service.settings import Settings
from service.state import State


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the command would have served with."""
    found: list[Settings] = []
    monkeypatch.setattr(serve, "serve", lambda settings, ready, **_: found.append(settings))
    return found


@pytest.mark.parametrize(
    ("options", "hosts", "auth"),
    [
        ([], None, False),
        (["--host", "0.0.0.0"], None, True),
        # A proxy of this machine brings strangers to loopback.
        ([], '["lab.example.org"]', True),
        (["--no-auth"], '["lab.example.org"]', False),
        (["--auth"], None, True),
    ],
)
def test_a_token_is_needed_wherever_strangers_may_come_from(
    started: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    hosts: str | None,
    auth: bool,
) -> None:
    if hosts:
        monkeypatch.setenv("FOCUS_LAB_ALLOWED_HOSTS", hosts)
    result = CliRunner().invoke(commands, ["serve", *options])
    assert result.exit_code == 0, result.output
    assert started[0].auth is auth
    warned = "everybody who reaches this address is an administrator" in result.output
    assert warned == ("--no-auth" in options)


class NoCompanion:
    """Starts nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def start(self) -> None:
        pass

    stop = start


@pytest.mark.parametrize(
    ("given", "link"),
    [
        ({}, "http://127.0.0.1:5050"),
        # For whoever comes from elsewhere that is his own machine.
        ({"host": "0.0.0.0"}, None),
        ({"allowed_hosts": ["lab.example.org"]}, None),
        (
            {"host": "0.0.0.0", "mlflow_url": "https://mlflow.example.org"},
            "https://mlflow.example.org",
        ),
    ],
)
def test_pages_link_to_mlflow_where_the_visitor_can_reach_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any], link: str | None
) -> None:
    monkeypatch.setattr(serve, "Companion", NoCompanion)
    with serve.mlflow_pages(Settings(home=tmp_path, **given), 5050) as settings:
        assert settings.mlflow_url == link


def test_no_password_of_mlflows_database_stands_in_a_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []

    class Noted(NoCompanion):
        def __init__(self, *arguments: Any) -> None:
            given.extend(arguments)

    monkeypatch.setattr(serve, "Companion", Noted)
    backend = "postgresql+psycopg://ann:secret@db/mlflow"
    with serve.mlflow_pages(Settings(home=tmp_path, tracking_uri=backend), 5050):
        _, command, environment, *_ = given
    assert "secret" not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == backend


def test_options_may_stand_in_the_environment(
    started: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in [
        ("AUTH", "true"), ("HOST", "127.0.0.2"), ("PORT", "9999"), ("DISPATCH", "false"),
    ]:  # fmt: skip
        monkeypatch.setenv(f"FOCUS_LAB_{name}", value)
    assert CliRunner().invoke(commands, ["serve"]).exit_code == 0
    assert CliRunner().invoke(commands, ["serve", "--port", "1", "--no-auth"]).exit_code == 0
    found = [(one.auth, one.host, one.port, one.dispatch) for one in started]
    assert found == [(True, "127.0.0.2", 9999, False), (False, "127.0.0.2", 1, False)]


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"auth": True}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a person who started the service on a terminal sees."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    before = structlog.get_config()
    configure_logs()
    # Loggers that are used meanwhile must not keep this terminal.
    structlog.configure(cache_logger_on_first_use=False)
    yield shown
    structlog.configure(**before)


def test_a_log_on_a_terminal_has_the_error_and_no_token(
    app: FastAPI,
    state: State,
    token: Callable[..., dict[str, str]],
    terminal: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("what went wrong")

    headers = token()
    secret = headers["Authorization"].removeprefix("Bearer ")
    monkeypatch.setattr(state.queue, "entry", broken)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/experiments/one", headers=headers).status_code == 500
    shown = terminal.getvalue()
    assert "what went wrong" in shown
    assert secret not in shown
    assert secret[:20] not in shown


def test_threads_share_what_memory_they_take() -> None:
    # In a process of its own: it holds for all that the process does later.
    program = "from service.serve import share_memory; print(share_memory())"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
