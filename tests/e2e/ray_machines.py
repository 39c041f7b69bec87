"""A Ray cluster on machines of a network: one node each, as `ray start` makes them anywhere."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
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

# As an autoscaler or a cloud's agent does.
_DRAIN = """
import sys, time
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
[node] = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == sys.argv[2]]
accepted, why = GcsClient(address=sys.argv[1]).drain_node(
    node,
    autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
    "taken back",
    int((time.time() + float(sys.argv[3])) * 1000),
)
assert accepted, why
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
        self._joining: list[tuple[subprocess.Popen[str], Machine, int, tuple[str, ...]]] = []
        options = ("--head", f"--port={PORT}", "--include-dashboard=true")
        self._start(head, cpus, options)

    def join(self, machine: Machine, *, cpus: int = 1, resources: str = "{}") -> None:
        """Start a node on a machine, or start it again; see `wait_for`."""
        self._start(machine, cpus, (f"--address={self.address}", f"--resources={resources}"))

    def _start(self, machine: Machine, cpus: int, options: tuple[str, ...]) -> None:
        log = machine.folder / "ray.txt"
        with log.open("a") as output:
            process = machine.start(
                _RAY, "start", "--block", "--disable-usage-stats", "--log-style=record",
                f"--node-ip-address={machine.address}", f"--num-cpus={cpus}", "--num-gpus=0",
                "--object-store-memory=100000000", *options,
                environment=self.environment, stdout=output, stderr=output,
            )  # fmt: skip
        self._joining.append((process, machine, cpus, options))

    def drain(self, machine: Machine, seconds: int = 120) -> None:
        """Announce that a node is taken back after so many seconds."""
        self.head.run(
            sys.executable, "-c", _DRAIN, self.address, machine.address, str(seconds),
            environment=self.environment,
        )  # fmt: skip

    def wait_for(self, nodes: int, seconds: float = _START_SECONDS) -> None:
        """Wait until so many nodes are alive, dead ones noticed.

        A node that gives up while it joins is started again, as service managers do: on a busy
        computer Ray's 30 s for it, which are fixed, may not do.
        """
        log = self.head.folder / "wait.txt"
        with log.open("w") as output:
            watch = self.head.start(
                sys.executable, "-c", _WAIT, self.address, str(nodes), str(seconds),
                environment=self.environment, stdout=output, stderr=output,
            )  # fmt: skip
        while watch.poll() is None:
            for entry in [entry for entry in self._joining if entry[0].poll() is not None]:
                self._joining.remove(entry)
                self._start(*entry[1:])
            time.sleep(0.1)
        assert watch.returncode == 0, log.read_text()
        self._joining.clear()
