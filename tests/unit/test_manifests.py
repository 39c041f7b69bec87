"""The KubeRay manifests: against the fields that KubeRay has, and against the rest of the tree."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "service" / "deploy" / "kuberay"
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
CLUSTER = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())
JOB = yaml.safe_load((FOLDER / "ray-job.yaml").read_text())
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Change = Callable[[dict[str, Any]], None]


def problems(manifest: dict[str, Any]) -> list[str]:
    kind = manifest["kind"][0].lower() + manifest["kind"][1:]
    schema = {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{kind}"}]}
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [detail.message for error in found for detail in error.context or [error]]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("manifest", [CLUSTER, JOB], ids=["cluster", "job"])
def test_a_manifest_has_fields_that_kuberay_has(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


def misspell(spec: dict[str, Any]) -> None:
    spec["enableInTreeAutoScaling"] = spec.pop("enableInTreeAutoscaling")


def number(spec: dict[str, Any]) -> None:
    spec["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def open_to_all(spec: dict[str, Any]) -> None:
    spec["authOptions"]["mode"] = "none"


def float_the_image(spec: dict[str, Any]) -> None:
    containers(spec)[1]["image"] = "focus-lab:latest"


def forget_resources(spec: dict[str, Any]) -> None:
    del containers(spec)[2]["resources"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (misspell, "enableInTreeAutoScaling"),
        (number, "0 is not of type 'string'"),
        (open_to_all, "'none' is not one of"),
        (float_the_image, "'focus-lab:latest' does not match"),
        (forget_resources, "'resources' is a required property"),
    ],
)
def test_a_mistake_in_a_manifest_is_found(change: Change, said: str) -> None:
    manifest = copy.deepcopy(CLUSTER)
    change(manifest["spec"])
    assert said in "\n".join(problems(manifest))


def test_cluster_and_job_have_the_same_nodes() -> None:
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]


def test_nodes_ask_for_a_token_scale_and_offer_gpus() -> None:
    spec = CLUSTER["spec"]
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] < group["maxReplicas"] for group in spec["workerGroupSpecs"])
    assert any("nvidia.com/gpu" in one["resources"]["limits"] for one in containers(spec))
    # What waits for its workers sits on the head, and takes no CPU from anybody.
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_versions_are_those_of_the_package_and_its_pins() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={CLUSTER['spec']['rayVersion']}\n" in pins
    assert {one["image"] for one in containers(CLUSTER["spec"])} == {f"focus-lab:{VERSION}"}
    assert f"focus-lab:{VERSION}" in (ROOT / "docker-compose.yml").read_text()


def test_manifests_and_compose_have_the_same_settings() -> None:
    settings = next(yaml.safe_load_all((FOLDER / "settings.yaml").read_text()))["data"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    head = compose["services"]["ray-head"]["environment"]
    assert {name: head[name] for name in settings} == settings


def test_no_manifest_has_a_secret() -> None:
    for path in FOLDER.glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document["kind"] != "Secret"
        assert not re.search(r"(password|token): *\S", path.read_text(), re.IGNORECASE)
