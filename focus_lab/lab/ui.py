"""MLflow's UI on the lab's tracking store, opened on the right page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from focus_lab.errors import TrackerError
from focus_lab.lab.comparison import plain_path, view_path
from focus_lab.lab.lab import artifact_root, embedded_tracking_uri, open_lab

_START_SECONDS = 120


def page_url(
    name: str | None, home: Path, store: str | None, tracking: str | None, base: str
) -> str:
    """Address of an experiment's comparison page; of the newest one when `name` is None.

    Raises:
        StoreError: there is no such experiment, or no store.
    """
    with open_lab(home, store, tracking, create=False) as lab:
        experiments = [lab.store.experiment(name)] if name else lab.store.experiments()
        if not experiments or (tracking_id := experiments[0].tracking_id) is None:
            return base
        path = view_path if lab.tracker.has_view(tracking_id) else plain_path
        return f"{base}/{path(tracking_id)}"


def serve_ui(
    name: str | None,
    home: Path,
    store: str | None,
    tracking: str | None,
    host: str,
    port: int,
    ready: Callable[[str], None],
) -> None:
    """Run MLflow's server until interrupted; call `ready` with the page's address once it answers.

    With a remote tracking URI its own server has the page: `ready` is called and nothing started.

    Raises:
        TrackerError: the server does not start.
    """
    if tracking and tracking.startswith("http"):
        ready(page_url(name, home, store, tracking, tracking.rstrip("/")))
        return
    base = f"http://{host}:{port}"
    url = page_url(name, home, store, tracking, base)
    backend = tracking or embedded_tracking_uri(home)
    artifacts = artifact_root(backend, home) or (home.resolve() / "mlartifacts").as_uri()
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--default-artifact-root", artifacts,
        "--serve-artifacts", "--artifacts-destination", artifacts,
        "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    # A plain `kill` must end the server too, not leave it behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if _answers(f"{base}/health"):
        raise TrackerError(
            f"MLflow's server at {base}: the port is taken, got an answer already; "
            "choose another --port"
        )
    # A file and not a pipe: nobody reads while the server runs, and a full pipe would stop it.
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the server
    # Its URI may have a password, and everybody on the machine sees command lines.
    environment = dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": backend}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=log, text=True
    )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(f"{base}/health"):
            if server.poll() is not None:
                log.seek(0)
                output = log.read()
                last = (output.strip().splitlines() or ["no output"])[-1]
                raise TrackerError(
                    f"MLflow's server at {base}: did not start, got {last!r}; "
                    "choose another --port or look at the store"
                )
            if time.monotonic() > deadline:
                raise TrackerError(
                    f"MLflow's server at {base}: does not answer, got nothing for "
                    f"{_START_SECONDS} s; choose another --port or look at the store"
                )
            time.sleep(0.3)
        ready(url)
        server.wait()
    finally:
        server.terminate()
        server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
