"""`focus-lab serve` on real Ray Jobs: whatever is killed, each trial is trained once to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import postgresql
import pytest
from chaos import free_port, wait_until
from postgresql import PostgreSQL
from processes import family_of, is_alive

from focus_lab.client import Client
from focus_lab.client.models import ExperimentDetail
from focus_lab.errors import FocusLabError
from focus_lab.specs.compose import merge

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1200)]

_COMMAND = [sys.executable, "-c", "from focus_lab.cli import main; main()"]
RATIO = "model.token_selection.keep_ratio"


@dataclass
class Service:
    """The service's command, on loopback."""

    folder: Path
    store: str
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _all: set[int] = field(default_factory=set)

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", patience_s=60)

    def start(self) -> None:
        command = [*_COMMAND, "serve", "--out", "runs", "--port", str(self.port)]
        command += ["--store", self.store]
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--mlflow-port", "0"], cwd=self.folder, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """Kill -9 the service alone; its cluster notices."""
        assert self._process is not None
        self._all |= set(family_of(self._process.pid))
        self._process.kill()
        self._process.wait()

    def driver_of(self, name: str) -> int:
        """The process that carries an experiment out."""
        assert self._process is not None
        with self.client as client:
            job = f"queue.job {client.experiment(name).id} "
        [driver] = [
            pid
            for pid, line in family_of(self._process.pid).items()
            if job in line and "/bin/sh" not in line
        ]
        return driver

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._all |= set(family_of(self._process.pid))
            self._process.terminate()
            self._process.wait(90)

    def end(self) -> None:
        self.stop()
        for pid in self._all:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def database() -> Iterator[PostgreSQL | None]:
    """A server that can be killed; where there is none, the service keeps a file."""
    if postgresql.why_not() is not None:
        yield None
        return
    with postgresql.server(durable=True) as started:
        yield started


@pytest.fixture
def service(tmp_path: Path, database: PostgreSQL | None) -> Iterator[Service]:
    store = database.new_database() if database else f"sqlite:///{tmp_path / 'lab.db'}"
    made = Service(tmp_path, store)
    made.start()
    yield made
    made.end()


@pytest.fixture
def spec(tiny_content: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    def make(name: str, epochs: int) -> dict[str, Any]:
        changes = {
            "name": name,
            "data": {"image_size": [64, 64], "num_train": 32},
            "training": {"epochs": epochs},
            "sweep": {"axes": {RATIO: [0.5, 1.0]}},
        }
        return merge(tiny_content, changes)

    return make


def test_what_is_submitted_is_carried_out_once_whatever_is_killed(
    service: Service, database: PostgreSQL | None, spec: Callable[..., dict[str, Any]]
) -> None:
    with service.client as client:
        # So long that it still trains when it is looked at.
        names = {"one": 24, "two": 40, "three": 3}
        for name, epochs in names.items():
            client.submit(spec(name, epochs))

        def now(name: str) -> ExperimentDetail:
            return client.experiment(name)

        def trained(name: str) -> bool:
            return bool(client.curves(name)) and now(name).trial_states.get("RUNNING", 0) > 0

        # The driver is killed: its experiment waits again, and goes on.
        wait_until(lambda: trained("one"), "the first trains", 240)
        os.kill(service.driver_of("one"), signal.SIGKILL)
        wait_until(lambda: now("one").attempt == 2, "it is admitted again", 240)
        # In the middle of the second attempt, and of the end of another experiment, the service is
        # killed, its cluster and its database with it.
        wait_until(lambda: now("one").state == "RUNNING" and trained("one"), "it trains again", 240)
        assert now("two").state != "FAILED", now("two").message
        client.cancel("two")
        service.kill()
        if database:
            database.kill_and_restart()
        service.start()
        # It is begun again, and all are killed while its driver is started.
        wait_until(lambda: now("two").state == "CANCELLED", "the second is cancelled", 240)
        client.retry("two")
        wait_until(lambda: now("two").state == "STARTING", "it is admitted", 240)
        service.kill()
        if database:
            database.kill_and_restart()
        service.start()
        wait_until(lambda: all(now(name).is_terminal for name in names), "all have ended", 400)
        for name in names:
            ended = now(name)
            assert (ended.state, ended.message) == ("SUCCEEDED", None)
            assert ended.trial_states == {"SUCCEEDED": 2}
            assert ended.report_ready
            for metrics in client.curves(name).values():
                epochs = [epoch for epoch, _ in metrics["coco/AP"]]
                assert epochs == sorted(set(epochs)), "no epoch was logged twice"
        assert now("one").attempt >= 2
        system = client.system()
        assert system.cluster is not None
        assert system.cluster.held_cpus == 0
        log = client.log("one")
        assert "--- attempt 2" in log
        # Nothing of it is left when it ends.
        service.stop()
        with Client(client.url, patience_s=0.1) as alone, pytest.raises(FocusLabError):
            alone.system()
