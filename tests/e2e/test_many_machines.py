"""Ray across machines with addresses of their own: ranks, collectives, cables and deaths.

`ray.cluster_utils.Cluster` puts all its nodes on one address, where every rank is on node 0.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from network import Machine, machines, why_not
from ray_machines import SOON, RayCluster

from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.training.fit import fit
from focus_lab.training.reporter import MemoryReporter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

# Two workers tell where they are, and add up what they have.
TRAIN = """
import json, os, socket, sys
import ray
import torch
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

def work():
    total = torch.full((1000,), float(dist.get_rank() + 1))
    dist.all_reduce(total)
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    facts = {name: os.environ.get(name) for name in names}
    facts["node_rank"] = get_context().get_node_rank()
    facts["host"], facts["address"] = socket.gethostname(), ray.util.get_node_ip_address()
    facts["total"] = sorted(set(total.tolist()))
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, facts)
    return everywhere

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
result = TorchTrainer(
    work,
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(
        num_workers=2, resources_per_worker={"CPU": 1}, placement_strategy="STRICT_SPREAD"
    ),
    run_config=RunConfig(
        name="spread", storage_path=sys.argv[2],
        failure_config=FailureConfig(controller_failure_limit=1),
    ),
).fit()
print(json.dumps(result.return_value))
"""
# Whoever has the wrong token must not get in.
INTRUDE = """
import sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("got in:", ray.cluster_resources())
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    with machines(tmp_path_factory.mktemp("network"), "head", "one", "two", "three") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(network: list[Machine]) -> RayCluster:
    """Four nodes; the head takes no work."""
    head, *others = network
    cluster = RayCluster(head, settings=SOON)
    for machine in others:
        cluster.join(machine)
    cluster.wait_for(4)
    return cluster


def train(cluster: RayCluster, folder: Path) -> list[dict[str, Any]]:
    done = cluster.head.run(
        sys.executable, "-c", TRAIN, cluster.address, folder,
        environment=cluster.environment, timeout=300,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_workers_on_two_machines_have_ranks_of_their_own_and_add_up(
    cluster: RayCluster, network: list[Machine], tmp_path: Path
) -> None:
    facts = train(cluster, tmp_path)
    head, *others = network
    places = {(fact["host"], fact["address"]) for fact in facts}
    assert len(places) == 2
    assert places <= {(machine.name, machine.address) for machine in others}
    assert [fact["RANK"] for fact in facts] == ["0", "1"]
    assert [fact["NODE_RANK"] for fact in facts] == ["0", "1"]
    assert [fact["node_rank"] for fact in facts] == [0, 1]
    assert {fact["LOCAL_RANK"] for fact in facts} == {"0"}
    assert {fact["LOCAL_WORLD_SIZE"] for fact in facts} == {"1"}
    assert {fact["MASTER_ADDR"] for fact in facts} == {facts[0]["address"]}
    assert [fact["total"] for fact in facts] == [[3.0], [3.0]]
    assert head.address not in {fact["address"] for fact in facts}


def test_a_wrong_token_is_refused(cluster: RayCluster) -> None:
    wrong = {**cluster.environment, "RAY_AUTH_TOKEN": "0" * 32}
    done = cluster.head.run(
        sys.executable, "-c", INTRUDE, cluster.address, environment=wrong, check=False
    )
    assert done.returncode != 0
    assert "got in" not in done.stdout
    assert "token" in done.stderr.lower()


class Sweep:
    """`focus-lab sweep` on the head, with what it says."""

    def __init__(self, cluster: RayCluster, spec: Path, home: Path) -> None:
        self._log, self._result = home / "said.txt", home / "result.json"
        home.mkdir()
        command = Path(sys.executable).parent / "focus-lab"
        with self._log.open("w") as said, self._result.open("w") as result:
            self.process = cluster.head.start(
                command, "sweep", spec, "--address", cluster.address, "--out", home, "--json",
                environment=cluster.environment, stdout=result, stderr=said,
            )  # fmt: skip

    def wait_for(self, words: str, seconds: float = 240) -> None:
        """Wait until it has said something."""
        deadline = time.monotonic() + seconds
        while words not in self._log.read_text():
            assert self.process.poll() is None, f"it has ended:\n{self.said()}"
            assert time.monotonic() < deadline, f"waited for {words!r}:\n{self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        return self._log.read_text()

    def result(self, seconds: float = 400) -> dict[str, Any]:
        """Wait for its end; what it printed."""
        assert self.process.wait(seconds) == 0, self.said()
        found: dict[str, Any] = json.loads(self._result.read_text())
        return found


def test_a_trial_across_machines_outlives_a_pulled_cable_and_a_killed_machine(
    cluster: RayCluster,
    network: list[Machine],
    tmp_path: Path,
    tiny_content: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    compute = {"device": "cpu", "workers": 2, "max_failures": 3}
    content = merge(
        tiny_content, {"name": "machines", "training": {"epochs": 120}, "compute": compute}
    )
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(content))
    by_name = {machine.name: machine for machine in network}
    sweep = Sweep(cluster, file, tmp_path / "runs")

    def attempts() -> list[dict[str, Any]]:
        [path] = (tmp_path / "runs").glob("machines/trials/*/workers.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    sweep.wait_for("  epoch 2/")
    [first] = attempts()
    cut = by_name[first["workers"][1]["host"]]
    cut.cut()
    sweep.wait_for("was lost")
    while len(attempts()) < 2:
        assert sweep.process.poll() is None, sweep.said()
        time.sleep(0.05)
    second = attempts()[1]
    assert cut.name not in {worker["host"] for worker in second["workers"]}
    cut.mend()
    cluster.join(cut)
    cluster.wait_for(4)
    killed = by_name[second["workers"][0]["host"]]
    killed.kill()
    while len(attempts()) < 3:
        assert sweep.process.poll() is None, sweep.said()
        time.sleep(0.05)
    third = attempts()[2]
    assert killed.name not in {worker["host"] for worker in third["workers"]}
    killed.boot()
    cluster.join(killed)
    cluster.wait_for(4)
    drained = by_name[third["workers"][1]["host"]]
    cluster.drain(drained)
    result = sweep.result()

    [trial] = result["trials"]
    assert (trial["status"], trial["attempts"]) == ("SUCCEEDED", 4), sweep.said()
    assert "a machine of the trial was taken back; going on" in sweep.said()
    for attempt in attempts():
        assert [worker["rank"] for worker in attempt["workers"]] == [0, 1]
        assert {worker["local_rank"] for worker in attempt["workers"]} == {0}
        assert [worker["node_rank"] for worker in attempt["workers"]] == [0, 1]
        assert len({worker["host"] for worker in attempt["workers"]}) == 2
    last = attempts()[3]
    assert drained.name not in {worker["host"] for worker in last["workers"]}
    spec = ExperimentSpec.model_validate(merge(content, {"compute": {"workers": 1}}))
    alone = fit(spec.base, MemoryReporter(), tmp_path / "alone").metrics
    assert trial["metrics"]["loss/total"] == pytest.approx(alone["loss/total"], rel=1e-3)
    story = [
        f"attempt {number}: "
        + ", ".join(f"rank {w['rank']} on {w['host']} ({w['address']})" for w in attempt["workers"])
        for number, attempt in enumerate(attempts(), start=1)
    ]
    story.insert(1, f"the cable of {cut.name} is pulled")
    story.insert(3, f"{killed.name} is killed")
    story.insert(5, f"{drained.name} is taken back with notice")
    with capsys.disabled():
        sys.stdout.write("\n  " + "\n  ".join(story) + "\n")
    drained.kill()
    cluster.wait_for(3)
    drained.boot()
    cluster.join(drained)
    cluster.wait_for(4)


def test_a_pulled_cable_and_a_killed_machine_are_noticed_and_both_come_back(
    cluster: RayCluster, network: list[Machine]
) -> None:
    _, one, two, _ = network
    began = time.monotonic()
    one.cut()
    cluster.wait_for(3)
    two.kill()
    cluster.wait_for(2)
    assert time.monotonic() - began < 120
    # Called dead, a node ends itself when it hears of it; so its machine starts it again.
    one.mend()
    two.boot()
    for machine in (one, two):
        cluster.join(machine)
    cluster.wait_for(4)
