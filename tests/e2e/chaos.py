"""A small lab of servers on loopback, and ways to kill each part of it."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import postgresql
from processes import family_of, is_alive

_BIN = Path(sys.executable).parent
_START_SECONDS = 180.0
TRIAL_ACTOR, TRAIN_WORKER = "ray::ImplicitFunc", "RayTrainWorker"
CONTROLLER = "ray::TrainController"

_UP = "Ray runtime started"
VICTIMS = ("worker", "trial", "driver", "node", "mlflow", "store")
"""What is killed: a training process, the process of a trial or what leads its workers, the sweep's
own command, a Ray node, the tracker, the database."""


def wait_until(done: Callable[[], bool], what: str, seconds: float = _START_SECONDS) -> None:
    """Wait for something, for a bounded time."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s until {what}"
        time.sleep(0.1)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Place:
    """PostgreSQL, an MLflow server, a Ray head without CPUs, and two nodes of one CPU each."""

    folder: Path
    database: postgresql.PostgreSQL
    mlflow_port: int = field(default_factory=free_port)
    ray_port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    store: str = ""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the lab has in its environment."""
        return {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            # Eight processes for jobs that nobody submits.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }

    @property
    def tracking(self) -> str:
        """The MLflow server."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def address(self) -> str:
        """The Ray cluster."""
        return f"127.0.0.1:{self.ray_port}"

    def start(self) -> None:
        """Start everything, and wait until it answers."""
        self.store = self.database.new_database()
        ports = [f"--port={self.ray_port}", f"--dashboard-port={free_port()}"]
        temporary = f"--temp-dir={self.folder / 'ray'}"
        self._bring_up("head", "--head", "--num-cpus=0", temporary, *ports)
        self.start_mlflow()
        for name in ("one", "two"):
            self.start_node(name)

    def stop(self) -> list[str]:
        """End everything; returns the command lines of processes that did not end."""
        family = family_of(os.getpid())
        mine = {pid for p in self._processes.values() for pid in family_of(p.pid)}
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(is_alive(pid) for pid in mine), "all have ended", 30)
        left = [family.get(pid, str(pid)) for pid in mine if is_alive(pid)]
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.kill()
            process.wait()
        return left

    def start_mlflow(self) -> None:
        """Start the tracker, or start it again."""
        home = self.folder / "mlflow"
        home.mkdir(exist_ok=True)
        self._start(
            "mlflow",
            _BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.mlflow_port),
            "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}",
            "--artifacts-destination", str(home / "artifacts"), "--workers", "1",
        )  # fmt: skip

        def answers() -> bool:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.tracking}/health", timeout=5).close()
                return True
            return False

        wait_until(answers, "MLflow answers")

    def start_node(self, name: str) -> None:
        """Start a node, or start it again."""
        self._bring_up(name, f"--address={self.address}", "--num-cpus=1")

    def _bring_up(self, name: str, *options: str) -> None:
        # One after the other: nodes of one machine that choose ports at once may choose the same.
        # One that gives up is started anew, as service managers do: on a busy computer Ray's 30 s
        # for it, which are fixed, may not do.
        log = self.folder / f"{name}.txt"
        log.touch()
        starts = log.read_text().count(_UP)

        def up() -> bool:
            process = self._processes.get(name)
            if process is None or process.poll() is not None:
                self._ray(name, *options)
            return log.read_text().count(_UP) > starts

        wait_until(up, f"node {name} is up")

    def _ray(self, name: str, *options: str) -> None:
        self._start(
            name,
            _BIN / "ray", "start", "--block", "--disable-usage-stats", "--log-style=record",
            "--node-ip-address=127.0.0.1", "--num-gpus=0", "--object-store-memory=100000000",
            *options,
        )  # fmt: skip

    def _start(self, name: str, *command: str | Path) -> None:
        with (self.folder / f"{name}.txt").open("a") as log:
            self._processes[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def _raylet(self, name: str) -> int | None:
        for pid, args in family_of(self._processes[name].pid).items():
            if "raylet/raylet" in args.split(" ", 1)[0]:
                return pid
        return None

    def training(self, *names: str) -> list[int]:
        """Processes of trials anywhere in the lab whose command line has one of the names."""
        found = []
        for process in self._processes.values():
            family = family_of(process.pid)
            found += [pid for pid, args in family.items() if any(name in args for name in names)]
        return found

    def kill_mlflow(self) -> None:
        """Kill -9 of the server with its workers."""
        os.killpg(self._processes["mlflow"].pid, signal.SIGKILL)
        self._processes["mlflow"].wait()

    def kill_node(self, name: str) -> None:
        """Kill -9 of a node's raylet; what it started notices."""
        process = self._processes[name]
        raylet = self._raylet(name)
        assert raylet is not None
        os.kill(raylet, signal.SIGKILL)
        process.wait(60)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A lab within the context. Its path is short: Ray keeps sockets in it."""
    with (
        postgresql.server(durable=True) as database,
        tempfile.TemporaryDirectory(prefix="fl-", ignore_cleanup_errors=True) as folder,
    ):
        made = Place(Path(folder), database)
        try:
            made.start()
            yield made
        finally:
            left = made.stop()
        assert not left, f"processes outlived the lab: {left}"


class Sweep:
    """`focus-lab sweep` in the lab, started again when it was killed."""

    def __init__(self, lab: Place, spec: Path) -> None:
        self._lab, self._spec = lab, spec
        self.log = spec.with_suffix(".txt")
        self.log.touch()
        self.starts = 0
        self.start()

    def start(self) -> None:
        """Start the command, or start it again."""
        self.starts += 1
        lab = self._lab
        with self.log.open("a") as talk, self._spec.with_suffix(".json").open("w") as result:
            self.process = subprocess.Popen(
                [_BIN / "focus-lab", "sweep", self._spec, "--address", lab.address, "--store",
                 lab.store, "--tracking-uri", lab.tracking, "--out", lab.folder / "runs", "--json"],
                env=lab.environment, stdout=result, stderr=talk, start_new_session=True,
            )  # fmt: skip

    def end(self) -> None:
        """See that the command does not outlive the test."""
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """What it said since it was started first."""
        return self.log.read_text()

    @property
    def result(self) -> Path:
        """What it printed."""
        return self._spec.with_suffix(".json")


@dataclass
class Kill:
    """A death, and how long until things went on."""

    victim: str
    after: float
    """Seconds after the start of the sweep."""
    recovery: float = 0.0
    """Seconds until a trial made an epoch, ended, or the sweep did."""


def strike(lab: Place, sweep: Sweep, victim: str, rng: random.Random) -> bool:
    """Kill something, and start again what nobody else would; False if the sweep has ended."""
    pause = rng.uniform(0.5, 8.0)
    if victim in ("worker", "trial"):
        names = (TRIAL_ACTOR, TRAIN_WORKER if victim == "worker" else CONTROLLER)
        found: list[int] = []

        def there() -> bool:
            found[:] = lab.training(*names)
            return bool(found) or sweep.process.poll() is not None

        wait_until(there, f"there is a {victim}")
        if sweep.process.poll() is not None:
            return False
        trainers = [pid for pid in found if pid in lab.training(TRAIN_WORKER)]
        os.kill(rng.choice(trainers if victim == "worker" and trainers else found), signal.SIGKILL)
    elif victim == "driver":
        if sweep.process.poll() is not None:
            return False
        sweep.process.kill()
        sweep.process.wait()
        sweep.start()
    elif victim == "node":
        name = rng.choice(("one", "two"))
        lab.kill_node(name)
        time.sleep(pause)
        lab.start_node(name)
    elif not wait_for_trials(sweep):
        return False
    elif victim == "mlflow":
        lab.kill_mlflow()
        time.sleep(pause)
        lab.start_mlflow()
    else:
        lab.database.kill()
        time.sleep(pause)
        lab.database.start()
    return True


def wait_for_trials(sweep: Sweep) -> bool:
    """Wait until trials have begun: a server that is away before is an error that says so."""
    wait_until(
        lambda: "  started" in sweep.said() or sweep.process.poll() is not None, "trials begin"
    )
    return sweep.process.poll() is None


def goes_on(text: str) -> int:
    """How much a sweep's log says of trials going on."""
    return sum("  epoch " in line or line.endswith("  done") for line in text.splitlines())
