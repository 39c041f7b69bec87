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
from network import Machine, machines, why_not
from ray_machines import SOON, RayCluster

pytestmark = [
    pytest.mark.slow,
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
    with machines(tmp_path_factory.mktemp("network"), "head", "one", "two") as made:
        yield made


@pytest.fixture(scope="module")
def cluster(network: list[Machine]) -> RayCluster:
    """Three nodes; the head takes no work."""
    head, *others = network
    cluster = RayCluster(head, settings=SOON)
    for machine in others:
        cluster.join(machine)
    cluster.wait_for(3)
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
    assert {(fact["host"], fact["address"]) for fact in facts} == {
        (machine.name, machine.address) for machine in others
    }
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


def test_a_pulled_cable_and_a_killed_machine_are_noticed_and_both_come_back(
    cluster: RayCluster, network: list[Machine]
) -> None:
    _, one, two = network
    began = time.monotonic()
    one.cut()
    cluster.wait_for(2)
    two.kill()
    cluster.wait_for(1)
    assert time.monotonic() - began < 120
    # Called dead, a node ends itself when it hears of it; so its machine starts it again.
    one.mend()
    two.boot()
    for machine in (one, two):
        cluster.join(machine)
    cluster.wait_for(3)
