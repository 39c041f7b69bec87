"""A Ray cluster on machines of a network: one node each, as `ray start` makes them anywhere."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from network import Machine

PORT = 6379
_RAY = str(Path(sys.executable).parent / "ray")
_START_SECONDS = 240
# What a person with a stopwatch would do; an error of the first moments is Ray not being there yet.
_WAIT = """
import sys, time
import ray
deadline = time.monotonic() + float(sys.argv[3])
while not ray.is_initialized():
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except ConnectionError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
while True:
    alive = sum(node["Alive"] for node in ray.nodes())
    if alive == int(sys.argv[2]):
        break
    if time.monotonic() > deadline:
        sys.exit(f"waited for {sys.argv[2]} nodes, there are {alive}")
    time.sleep(0.05)
"""

SOON = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""Settings by which Ray calls a silent node dead after about 6 s, not 30. Too short for a cluster
whose machines may be busy: a node called dead by mistake ends itself."""


class RayCluster:
    """Nodes that share a token.

    Args:
        head: the machine of the head node, which is started.
        cpus: how many the head offers to tasks.
        settings: environment of every node, and of drivers.

    Attributes:
        address: what drivers connect to.
        environment: what they need in their environment.
    """

    def __init__(
        self, head: Machine, *, cpus: int = 0, settings: Mapping[str, str] | None = None
    ) -> None:
        self.head = head
        self.address = f"{head.address}:{PORT}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else its workers starve beside anything else on the computer.
            "RAY_worker_niceness": "0",
            # A rank that is gone must not make the others wait for ever.
            "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "120",
            **(settings or {}),
        }
        self._start(head, cpus, "--head", f"--port={PORT}", "--include-dashboard=true")

    def join(self, machine: Machine, *, cpus: int = 1, resources: str = "{}") -> None:
        """Start a node on a machine, or start it again; see `wait_for`."""
        self._start(machine, cpus, f"--address={self.address}", f"--resources={resources}")

    def _start(self, machine: Machine, cpus: int, *options: str) -> None:
        log = machine.folder / "ray.txt"
        with log.open("a") as output:
            machine.start(
                _RAY, "start", "--block", "--disable-usage-stats", "--log-style=record",
                f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", "--num-gpus=0",
                "--object-store-memory=100000000", *options,
                environment=self.environment, stdout=output, stderr=output,
            )  # fmt: skip

    def wait_for(self, nodes: int, seconds: float = _START_SECONDS) -> None:
        """Wait until so many nodes are alive, dead ones noticed."""
        self.head.run(
            sys.executable, "-c", _WAIT, self.address, str(nodes), str(seconds),
            environment=self.environment, timeout=seconds + 60,
        )  # fmt: skip
