"""The service behind a proxy with TLS: nginx, with the configuration that service/deploy has."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from chaos import free_port

from focus_lab.client import Client
from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.tokens import Scope
from service.state import State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("nginx") and shutil.which("openssl")), reason="there is no nginx"
    ),
]
CONFIGURATION = Path(__file__).parents[2] / "service" / "deploy" / "nginx.conf"


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"auth": True}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, signed by itself; its key is beside it."""
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
        "-keyout", str(tmp_path / "lab.key"), "-out", str(tmp_path / "lab.pem"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "lab.pem"


@pytest.fixture
def proxy(address: str, certificate: Path, tmp_path: Path) -> Iterator[str]:
    """The service's address as its users know it."""
    port = free_port()
    server = CONFIGURATION.read_text(encoding="utf-8")
    for given, wanted in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "lab.example.org": "localhost",
        "/etc/ssl": str(tmp_path),
        "http://127.0.0.1:8000": address,
    }.items():
        assert given in server
        server = server.replace(given, wanted)
    temporary = "".join(
        f"{kind}_temp_path {tmp_path / kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {tmp_path / 'nginx.pid'};\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{server}}}\n"
    )
    command = ["nginx", "-e", str(tmp_path / "error.log"), "-c", str(tmp_path / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        yield f"https://localhost:{port}"
        running.terminate()
        running.communicate()


@pytest.fixture
def http(proxy: str, certificate: Path) -> Iterator[httpx2.Client]:
    trusted = ssl.create_default_context(cafile=str(certificate))
    # It is tried again until nginx listens.
    transport = httpx2.HTTPTransport(verify=trusted, retries=6)
    with httpx2.Client(base_url=proxy, transport=transport) as opened:
        opened.get("/health/live")
        yield opened


def test_a_browser_logs_in_and_changes_things_over_tls(
    http: httpx2.Client, proxy: str, state: State, spec: Callable[..., dict[str, Any]]
) -> None:
    form = {"token": str(state.tokens.create("ann", Scope.SUBMIT)), "next": "/ui/"}
    answer = http.post("/ui/login", data=form, headers={"Origin": proxy})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    assert http.get("/ui/").status_code == 200
    submitted = http.post("/experiments", json=spec("one"), headers={"Origin": proxy})
    assert submitted.status_code == 202
    assert http.get(submitted.headers["location"]).json()["name"] == "one"
    foreign = http.post("/experiments/one/cancel", headers={"Origin": "https://elsewhere.org"})
    assert foreign.json()["code"] == "foreign-origin"
    stranger = http.get("/experiments", headers={"Host": "elsewhere.org"})
    assert stranger.json()["code"] == "unknown-host"


def test_events_arrive_while_the_stream_is_open(
    http: httpx2.Client,
    state: State,
    dispatcher: Dispatcher,
    token: Callable[..., dict[str, str]],
    spec: Callable[..., dict[str, Any]],
) -> None:
    http.headers.update(token())
    with http.stream("GET", "/events", timeout=20) as events:
        lines = events.iter_lines()
        http.post("/experiments", json=spec("one"))
        assert "submitted" in next(line for line in lines if line.startswith("event:"))
        dispatcher.round()
        assert any(line == "event: admitted" for line in lines)


def test_a_followed_log_arrives_line_by_line(
    http: httpx2.Client,
    jobs: MemoryJobs,
    dispatcher: Dispatcher,
    token: Callable[..., dict[str, str]],
    spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    http.headers.update(token())
    http.post("/experiments", json=spec("one"))
    monkeypatch.setattr(jobs, "logs", lambda job: "begun\n")
    with http.stream("GET", "/experiments/one/log?follow=true", timeout=20) as log:
        dispatcher.round()
        lines = log.iter_lines()
        assert [next(lines), next(lines)] == ["--- attempt 1", "begun"]


def test_the_client_trusts_the_certificates_that_its_machine_trusts(
    proxy: str,
    http: httpx2.Client,
    certificate: Path,
    state: State,
    spec: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with Client(proxy, str(state.tokens.create("ann", Scope.SUBMIT))) as client:
        client.submit(spec("one"))
        assert client.experiment("one").user == "ann"
