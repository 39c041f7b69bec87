"""docker-compose.yml without a container engine: each service's very command, on its own machine.

Machines carry the services' names, so nothing is substituted but the secrets: commands,
environment, addresses, ports, volumes and health checks are those of the file.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import network
import postgresql
import pytest
import yaml
from network import Machine

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / "service" / "deploy" / ".env.example"
SECRETS = {"POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"}
START_SECONDS = 480
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


class NotSetError(Exception):
    """A variable that must be set is not; the message is the file's own sentence."""


def interpolate(content: Any, environment: Mapping[str, str]) -> Any:
    """What compose makes of `${NAME:-default}` and `${NAME:?sentence}`."""

    def value(found: re.Match[str]) -> str:
        dollar, name, kind, text = found.groups()
        if dollar:
            return "$"
        if environment.get(name):
            return environment[name]
        if kind == "?":
            raise NotSetError(text)
        return str(text or "")

    if isinstance(content, dict):
        return {key: interpolate(inner, environment) for key, inner in content.items()}
    if isinstance(content, list):
        return [interpolate(inner, environment) for inner in content]
    return _VARIABLE.sub(value, content) if isinstance(content, str) else content


def services(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = interpolate(
        yaml.safe_load(FILE.read_text())["services"], environment
    )
    return found


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_it_refuses_to_start_without_its_secrets(secret: str) -> None:
    given = dict.fromkeys(SECRETS - {secret}, "word")
    with pytest.raises(NotSetError, match=f"set {secret} in .env; see service/deploy/README.md"):
        services(given)
    # An empty one is none.
    with pytest.raises(NotSetError, match=f"set {secret}"):
        services(given | {secret: ""})


def test_the_example_names_every_secret_and_gives_none() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and line[0] != "#"]
    assert {line.partition("=")[0] for line in lines} == SECRETS
    assert all(line.endswith("=") for line in lines)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_everything_is_pinned_checked_and_kept() -> None:
    found = services(dict.fromkeys(SECRETS, "word"))
    for name, service in found.items():
        image, _, tag = service["image"].partition(":")
        assert re.search(r"\d+\.\d+", tag), f"{name}: {image} is not pinned"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["volumes"], f"{name} forgets everything"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    volumes = yaml.safe_load(FILE.read_text())["volumes"]
    used = {v.split(":")[0] for service in found.values() for v in service["volumes"]}
    assert set(volumes) <= used
    stages = re.findall(r"^(?:FROM|ARG) .*", (FILE.parent / DOCKERFILE).read_text(), re.MULTILINE)
    assert any(re.match(r"ARG PYTHON=\d+\.\d+\.\d+-", stage) for stage in stages)
    assert not any("latest" in stage for stage in stages)


DOCKERFILE = Path("service/deploy/Dockerfile")


def test_compose_itself_accepts_the_file() -> None:
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("docker is not installed")
    plugin = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
    if plugin.returncode:
        pytest.skip("docker has no compose plugin here")
    done = subprocess.run(
        [docker, "compose", "--profile", "gpu", "--file", FILE, "config", "--quiet"],
        env={**os.environ, **dict.fromkeys(SECRETS, "word")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# The very commands


class Deployment:
    """The file's services, each on a machine of its name, started in the file's order."""

    def __init__(self, machines: list[Machine], volumes: Path) -> None:
        self.secrets = {name: secrets.token_urlsafe(24) for name in SECRETS}
        self.services = services(self.secrets)
        self.machines = {machine.name: machine for machine in machines}
        self.volumes = volumes
        self.commands: dict[str, list[str | Path]] = {}
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def environment(self, name: str) -> dict[str, str]:
        """A container's: the file's, and the image's programs on the PATH."""
        place = postgresql.binaries() if name == "postgres" else Path(sys.executable).parent
        given = {key: str(value) for key, value in self.services[name]["environment"].items()}
        return {"PATH": f"{place}:{os.environ['PATH']}", **given}

    def run(
        self, name: str, *command: str, check: bool = True, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose exec NAME COMMAND`."""
        environment = {**self.environment(name), **changes}
        return self.machines[name].run(*command, environment=environment, check=check)

    def start(self) -> None:
        """Start each service once those that it depends on are healthy; wait until all are."""
        deadline = time.monotonic() + START_SECONDS
        waiting, started, healthy = set(self.machines), set[str](), set[str]()
        while healthy != set(self.machines):
            for name in sorted(waiting):
                if set(self.services[name].get("depends_on", {})) <= healthy:
                    self._start(name)
                    waiting.remove(name)
                    started.add(name)
            for name in sorted(started - healthy):
                kind, *command = self.services[name]["healthcheck"]["test"]
                assert kind == "CMD"
                if self.run(name, *command, check=False).returncode == 0:
                    healthy.add(name)
            for name in sorted(started):
                if self.processes[name].poll() is not None:
                    # On a busy computer one of Ray's many time limits may end it.
                    assert self.services[name]["restart"] == "unless-stopped"
                    healthy.discard(name)
                    self._launch(name)
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)

    def _start(self, name: str) -> None:
        machine, service = self.machines[name], self.services[name]
        machine.run("mount", "-t", "tmpfs", "tmpfs", "/srv")
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            if source.isidentifier():
                place = self.volumes / source
                place.mkdir(exist_ok=True)
                machine.run("mkdir", "-p", target)
                machine.run("mount", "--bind", place, target)
            elif (file := FILE.parent / source).is_file():
                machine.run("touch", target)
                machine.run("mount", "--bind", file, target)
        command = service["command"]
        if name == "postgres":
            command = self._initialise(machine, service)
        self.commands[name] = command
        self._launch(name)

    def _launch(self, name: str) -> None:
        with self.log(name).open("a") as log:
            self.processes[name] = self.machines[name].start(
                *self.commands[name], environment=self.environment(name), folder=Path("/srv"),
                stdout=log, stderr=log,
            )  # fmt: skip

    def _initialise(self, machine: Machine, service: Mapping[str, Any]) -> list[str | Path]:
        """What the image's entry point does with its environment, on an empty volume."""
        environment = self.environment("postgres")
        run = functools.partial(machine.run, environment=environment, folder=Path("/srv"))
        user, data = environment["POSTGRES_USER"], environment["PGDATA"]
        if owner := postgresql.account():
            run("chown", owner.pw_name, Path(data).parent)
        script = f"""
            initdb --username={user} --pwfile=<(printf %s "$POSTGRES_PASSWORD") --no-sync \
                $POSTGRES_INITDB_ARGS
            echo 'CREATE DATABASE "{environment["POSTGRES_DB"]}"' | postgres --single postgres
            echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
            echo "unix_socket_directories = '{Path(data).parent}'" >> "$PGDATA/postgresql.conf"
        """
        run(*postgresql.as_account("bash", "-e", "-c", script))
        return postgresql.as_account(*service["command"])

    def log(self, name: str) -> Path:
        """What a service says."""
        return self.machines[name].folder / "log.txt"

    def logs(self) -> str:
        """The last of what each service said."""
        names = [name for name in self.machines if self.log(name).exists()]
        return "\n".join(f"{name}:\n{self.log(name).read_text()[-3000:]}" for name in names)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    if reason := network.why_not() or postgresql.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("compose")
    names = ("postgres", "mlflow", "ray-head", "ray-worker", "service")
    with network.machines(folder / "machines", *names) as machines:
        (folder / "volumes").mkdir()
        made = Deployment(machines, folder / "volumes")
        made.start()
        yield made


# A lab's process on the head: store, tracker, cluster, from nothing but its environment.
USE = """
import json, os, socket, sys
from pathlib import Path
import ray
import yaml
from focus_lab.errors import StoreError
from focus_lab.lab.mlflow_tracker import MlflowTracker
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

spec = ExperimentSpec.model_validate(json.loads(sys.argv[1]))
home = Path(os.environ["FOCUS_LAB_HOME"])
store = Store(os.environ["FOCUS_LAB_STORE"])
tracker = MlflowTracker(os.environ["MLFLOW_TRACKING_URI"])
experiment = store.record(spec, plan(spec), home / spec.name)
tracking_id = tracker.ensure_experiment(experiment)
store.set_tracking_id(experiment.id, tracking_id)
[trial] = store.trials(experiment.id)
run_id = tracker.ensure_run(tracking_id, trial)
trial = store.move(store.set_tracking_run(trial, run_id), TrialState.RUNNING)
tracker.log_epoch(run_id, 1, {"coco/AP": 0.25})
(home / "pictures").mkdir()
(home / "pictures" / "one.txt").write_text("a picture")
tracker.log_files(run_id, home / "pictures", "pictures")
tracker.end_run(run_id, TrialState.SUCCEEDED)
store.move(trial, TrialState.SUCCEEDED)

ray.init(address="ray-head:6379", log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1)
def where():
    return socket.gethostname(), (home / "pictures" / "one.txt").read_text()

@ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})
def driver():
    return socket.gethostname()

print(json.dumps({
    "curve": tracker.curves(run_id)["coco/AP"],
    "url": store.url,
    "nodes": sorted(n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]),
    "worker": ray.get(where.remote()),
    "driver": ray.get(driver.remote()),
}))
os.environ["PGPASSWORD"] = "wrong"
try:
    Store(os.environ["FOCUS_LAB_STORE"])
except StoreError as error:
    print(error)
"""

ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1])
for header in sys.argv[2:]:
    request.add_header(*header.split(": "))
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_services_work_together_as_the_file_starts_them(
    deployment: Deployment, tiny_content: dict[str, Any]
) -> None:
    content = json.dumps({**tiny_content, "name": "composed"})
    said = deployment.run("ray-head", "python", "-c", USE, content).stdout.splitlines()
    *_, found, refusal = said
    facts = json.loads(found)
    assert facts["curve"] == [[1, 0.25]]
    assert facts["nodes"] == ["ray-head", "ray-worker"]
    assert facts["worker"] == ["ray-worker", "a picture"]
    assert facts["driver"] == "ray-head"
    assert "@postgres:5432" in facts["url"]
    assert "password authentication failed" in refusal
    # The command line finds it by the same environment.
    listed = deployment.run("ray-head", "focus-lab", "list").stdout
    assert "composed" in listed
    kept = list((deployment.volumes / "mlflow").rglob("one.txt"))
    assert [path.read_text() for path in kept] == ["a picture"]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("http://ray-head:8265/api/jobs/", ["Authorization: Bearer RIGHT"], "200"),
        ("http://ray-head:8265/api/jobs/", ["Authorization: Bearer wrong"], "403"),
        ("http://ray-head:8265/api/jobs/", [], "401"),
        ("http://mlflow:5000/health", [], "200"),
        ("http://mlflow:5000/api/2.0/mlflow/experiments/search?max_results=1", [], "200"),
        (
            "http://mlflow:5000/api/2.0/mlflow/experiments/search?max_results=1",
            ["Host: evil.example"],
            "403",
        ),
    ],
    ids=["right-token", "wrong-token", "no-token", "health", "by-name", "foreign-name"],
)
def test_who_is_let_in(
    deployment: Deployment, address: str, headers: list[str], status: str
) -> None:
    token = deployment.secrets["RAY_AUTH_TOKEN"]
    told = [header.replace("RIGHT", token) for header in headers]
    assert (
        deployment.run("ray-worker", "python", "-c", ASK, address, *told).stdout.strip() == status
    )


# Somebody on another machine of the network, with a token and the service's address.
SUBMIT = """
import json, os, sys, time
from focus_lab.client import Client

with Client("http://service:8000", os.environ["FOCUS_LAB_TOKEN"]) as client:
    client.submit(json.loads(sys.argv[1]))
    deadline = time.monotonic() + 400
    while not (found := client.experiment("queued")).is_terminal:
        assert time.monotonic() < deadline, (found, client.log("queued"))
        time.sleep(1)
    print(json.dumps({
        "state": found.state,
        "message": found.message,
        "user": found.user,
        "trials": found.trial_states,
        "epochs": [len(m["coco/AP"]) for m in client.curves("queued").values()],
        "report": "<html" in client.report("queued").decode(),
        "comparison": found.comparison_url,
        "log": client.log("queued"),
    }))
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_service_queues_for_the_cluster(
    deployment: Deployment, tiny_content: dict[str, Any]
) -> None:
    made = deployment.run("service", "focus-lab", "token", "create", "ann", "--scope", "submit")
    token = made.stdout.strip()
    content = json.dumps({**tiny_content, "name": "queued"})
    said = deployment.run("mlflow", "python", "-c", SUBMIT, content, FOCUS_LAB_TOKEN=token)
    found = json.loads(said.stdout.splitlines()[-1])
    assert (found["state"], found["message"], found["user"]) == ("SUCCEEDED", None, "ann")
    assert found["trials"] == {"SUCCEEDED": 1}
    assert found["epochs"] == [2]
    assert found["report"]
    assert found["comparison"].startswith("http://localhost:5000/#/experiments/")
    assert "baseline-seed0  done" in found["log"]
    unknown = deployment.run("mlflow", "python", "-c", ASK, "http://service:8000/experiments")
    assert unknown.stdout.strip() == "401"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_no_log_and_no_command_line_has_a_secret(deployment: Deployment) -> None:
    everything = deployment.logs()
    for machine in deployment.machines.values():
        everything += machine.run("ps", "-A", "-ww", "-o", "args=").stdout
    for name, value in deployment.secrets.items():
        assert value not in everything, name
