"""Traces, sent to a collector of OpenTelemetry's protocol."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

# In a process of its own: what it configures holds for the whole process.
_ASKED = """
from pathlib import Path
from starlette.testclient import TestClient
from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from service.serve import name_traces
from service.app import create_app
from service.settings import Settings
from service.state import State

name_traces()
queue = Queue(Store("sqlite:///lab.db"), Policy())
state = State(Settings(home=Path("."), auth=False), queue, MemoryJobs(), MemoryTracker)
with TestClient(create_app(state), base_url="http://localhost") as client:
    assert client.get("/experiments").status_code == 200
"""


@pytest.fixture
def collected() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Address of a collector, and what it has got."""
    got: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_requests_are_traced_under_the_services_name(
    collected: tuple[str, list[tuple[str, bytes]]], tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    address, got = collected
    settings = {"FASTAPI_OTEL_AUTO_CONFIGURE": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": address}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | settings | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", _ASKED]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    spans = b"".join(body for path, body in got if path == "/v1/traces")
    assert b"GET /experiments" in spans
    assert b"focus-lab" in spans
