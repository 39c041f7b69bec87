"""A Ray cluster of one machine that lives and dies with the service."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from focus_lab.lab.companion import Companion

_STOP_WAIT_S = "30"
"""Seconds that a driver has to save before it is killed; Ray's own is 3."""


class EmbeddedRay:
    """A head node on loopback, asking for a token that only this process knows.

    Args:
        environment: settings of the lab, for the drivers.
        log: file that takes what Ray prints.
        note: told when Ray ends unexpectedly.
    """

    def __init__(
        self, environment: Mapping[str, str], log: Path, note: Callable[[str], None]
    ) -> None:
        self.token = secrets.token_hex(16)
        ports = free_ports(3)
        self.dashboard = f"http://127.0.0.1:{ports[0]}"
        # Sockets have short names: Ray's own folder may be too deep below a home.
        self._folder = tempfile.TemporaryDirectory(prefix="fl-ray-", ignore_cleanup_errors=True)
        ray = str(Path(sys.executable).parent / "ray")
        command = [
            ray, "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", "--port=0", "--include-dashboard=true",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={ports[0]}",
            f"--dashboard-agent-listen-port={ports[1]}",
            f"--dashboard-agent-grpc-port={ports[2]}",
            f"--temp-dir={self._folder.name}",
        ]  # fmt: skip
        settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_JOB_STOP_WAIT_TIME_S": _STOP_WAIT_S,
            "RAY_worker_niceness": "0",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self._companion = Companion("Ray", command, kept | settings | dict(environment), log, note)

    def start(self) -> None:
        """Start it; whoever wants something of it tries until it answers."""
        self._companion.start()

    def stop(self) -> None:
        """End it, and everything that runs on it."""
        self._companion.stop()
        self._folder.cleanup()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in opened]
    for server in opened:
        server.close()
    return ports
