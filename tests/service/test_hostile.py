"""Hostile bodies: every one is answered, quickly, in little memory, and never with a 5xx.

FOCUS_LAB_FUZZ sets how many are tried on each database: 500 by default, in a quarter of a minute.
Every second spec is submitted, the others are only planned.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from focus_lab.lab.store import Store
from focus_lab.lab.tokens import Scope, Tokens
from focus_lab.specs.experiment import ExperimentSpec
from service.bench_server import resident_mb, serving

pytestmark = pytest.mark.slow

_EXAMPLES = int(os.environ.get("FOCUS_LAB_FUZZ", "500"))
_MOST_SECONDS, _FIRST = 10.0, 200
_LARGEST_ANSWER = 400_000
_MOST_MB = 100.0
"""More than it had after its first requests."""

Server = tuple[httpx2.Client, int]
_KINDS = ["application/yaml", "application/json"]

_CONSTANT = {"token_selection": {"cascade": {"kind": "constant", "mean": 0.5}}}
_AXES = {f"model.loss.{number}": list(range(1, 400)) for number in range(8)}
"""More points than Python draws from."""
_UNSAYABLE = {str(number): list(range(8)) for number in range(4800)}
"""More points than Python writes the number of."""

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**30, max_value=10**60),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(
        ["@x", "/etc/passwd", "../..", "package:os", "kind", "shapes", "coco", "focus", "\0", "💥",
         "9" * 5000, "1:" * 50 + "1", "~", "<<", "!!python/object:os.system"]
    ),
)  # fmt: skip


def _paths(schema: dict[str, Any]) -> list[str]:
    """Dotted paths of a spec, some levels deep."""
    found = []

    def walk(node: dict[str, Any], path: str, depth: int) -> None:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for name, part in node.get("properties", {}).items():
            dotted = f"{path}.{name}" if path else name
            found.append(dotted)
            for inner in [part, *part.get("oneOf", []), *part.get("anyOf", [])]:
                if depth < 4 and isinstance(inner, dict):
                    walk(inner, dotted, depth + 1)

    walk(schema, "", 0)
    return sorted(set(found))


_dotted = st.sampled_from(_paths(ExperimentSpec.model_json_schema()))
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.one_of(_dotted, st.text(max_size=10)), inner, max_size=5)
    ),
    max_leaves=20,
)

_numbers = st.integers(1, 9) | st.integers(0) | st.floats(0)
_nearly = st.one_of(
    st.tuples(st.just("description"), st.text(max_size=300)),
    st.tuples(st.just("sweep.seeds"), st.lists(st.integers(0), min_size=1, max_size=3)),
    st.tuples(
        st.just("sweep.cells"),
        st.dictionaries(
            st.text(max_size=30), st.fixed_dictionaries({"training.epochs": _numbers}), max_size=3
        ),
    ),
    st.tuples(st.sampled_from(["compute.cpus_per_worker", "compute.max_failures"]), _numbers),
)
"""What is often a spec that is taken: such ones meet the database."""


def _put(content: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split(".")
    for key in above:
        below = content.get(key)
        if not isinstance(below, dict):
            below = content[key] = {}
        content = below
    content[last] = value


_texts = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="[]{}:,&*!|>-?#\"'% \n\tab01.", max_size=400),
    st.builds(lambda token, count: token * count, st.sampled_from(
        ["[", "{", "- ", "? ", "a: ", "&a ", "*a ", "!!", "|\n ", "'", '"', "---\n", "[[],", "{a: ",
         "\ud7ff", "\u2028", "é", "0", "1e", "<<: ", "%YAML 1.1\n"]
    ), st.integers(1, 20000)),
)  # fmt: skip


@pytest.fixture
def base(spec: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return spec("fuzz")


def _check(answer: Any, begun: float) -> None:
    assert answer.status_code < 500, answer.text
    assert len(answer.content) < _LARGEST_ANSWER
    assert time.perf_counter() - begun < _MOST_SECONDS
    if answer.status_code >= 400:
        content = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert content["detail"]
        assert "Traceback" not in answer.text


@pytest.fixture
def server(store: Store, store_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server in a process of its own, so that its memory can be told from the test's."""
    token = Tokens(store.database).create("mallory", Scope.SUBMIT)
    headers = {"authorization": f"Bearer {token}"}
    with (
        serving(store_url, str(tmp_path)) as (address, pid),
        httpx2.Client(base_url=address, headers=headers, timeout=60.0) as client,
    ):
        yield client, pid


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            {"sweep": {"axes": {f"unknown.path_{n}": [1] for n in range(4000)}}}, id="axes"
        ),
        pytest.param({f"unknown_{n}": 1 for n in range(6000)}, id="keys"),
        pytest.param(
            {"sweep": {"cells": {f"c{n}": {"nothing": 1} for n in range(500)}}}, id="cells"
        ),
    ],
)
def test_many_mistakes_are_answered_shortly(
    client: TestClient, base: dict[str, Any], body: dict[str, Any]
) -> None:
    begun = time.perf_counter()
    answer = client.post("/experiments?plan=true", json=base | body)
    assert answer.status_code == 400
    _check(answer, begun)
    assert "more mistakes; mend these first" in answer.json()["errors"][-1]


def test_a_key_that_stands_twice_among_many_is_found_at_once(client: TestClient) -> None:
    keys = [f'"k{number}": 1' for number in range(9000)]
    text = "{" + ", ".join([*keys, keys[-1]]) + "}"
    begun = time.process_time()
    answer = client.post("/experiments", content=text, headers={"content-type": "application/json"})
    # To look for each key among all took seconds.
    assert time.process_time() - begun < 0.5
    assert "'k8999' twice in one mapping" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (
            {"model": {"num_encoder_layers": layers, **_CONSTANT}},
            "model.num_encoder_layers: must be at most 64",
        )
        for layers in (30_000_000, 10**25, 10**400)
    ]
    + [
        ({"sweep": {"seeds": [2**63]}}, "sweep.seeds.0: must be at most"),
        ({"sweep": {"seeds": [2**31]}}, "sweep.seeds.0: must be at most"),
        ({"compute": {"cpus_per_worker": 1e308, "workers": 10}}, "cpus_per_worker: must be at m"),
        ({"compute": {"workers": 10**400}}, "compute.workers: must be at most 1024"),
        ({"compute": {"workers": 10**6, "cpus_per_worker": 1e-9}}, "workers: must be at most"),
        ({"compute": {"gpus_per_worker": 1e-9}}, "gpus_per_worker: must be 0 or at least 0.01"),
        ({"sweep": {"cells": {"a\0b": {"training.epochs": 1}}}}, "control characters, got '\\x00'"),
        ({"sweep": {"axes": {"training.epochs": [1, "\x1b[2J"]}}}, "control characters"),
        ({"description": "\0"}, "description: no text may have control characters"),
        ({"sweep": {"axes": _AXES, "search": {"kind": "random", "samples": 1}}}, "combinations"),
        ({"sweep": {"axes": _AXES, "search": {"kind": "optuna", "samples": 1}}}, "combinations"),
        ({"sweep": {"axes": _UNSAYABLE}}, "too many trials, got a very long number"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_no_memory_database_or_clock_could_take_is_a_sentence(
    client: TestClient, base: dict[str, Any], part: dict[str, Any], sentence: str
) -> None:
    begun, before = time.perf_counter(), resident_mb(os.getpid())
    answer = client.post("/experiments", json=base | part)
    assert answer.status_code == 400
    _check(answer, begun)
    content = answer.json()
    assert sentence in " ".join([content["detail"], *content["errors"]])
    assert resident_mb(os.getpid()) - before < _MOST_MB


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_no_body_breaks_the_service(server: Server, base: dict[str, Any]) -> None:
    client, pid = server
    before = 0.0
    statuses: dict[int, int] = {}
    budget = settings(
        max_examples=_EXAMPLES // 2,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def send(text: str | bytes, kind: str, plan: bool = True) -> None:
        begun = time.perf_counter()
        answer = client.post(
            "/experiments", params={"plan": plan}, content=text, headers={"content-type": kind}
        )
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if sum(statuses.values()) == _FIRST:
            nonlocal before
            before = resident_mb(pid)
        _check(answer, begun)

    @budget
    @given(
        st.lists(st.tuples(_dotted, _values), max_size=6) | st.lists(_nearly, max_size=3),
        st.booleans(),
        st.booleans(),
    )
    def specs(changes: list[tuple[str, Any]], as_yaml: bool, plan: bool) -> None:
        # A name of its own: that of one that waits already is refused.
        content = json.loads(json.dumps(base)) | {"name": f"fuzz-{sum(statuses.values())}"}
        for path, value in changes:
            _put(content, path, value)
        if as_yaml:
            send(yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "replace"),
                 "application/yaml", plan)  # fmt: skip
        else:
            send(json.dumps(content), "application/json", plan)

    @budget
    @given(
        _texts | st.binary(max_size=300), st.sampled_from(["application/yaml", "application/json"])
    )
    def texts(text: str | bytes, kind: str) -> None:
        send(text if isinstance(text, bytes) else text.encode("utf-8", "replace"), kind)

    specs()
    texts()
    assert {200, 202, 400} <= statuses.keys()
    grown = resident_mb(pid) - before
    told = f"statuses {statuses}, {before:.0f} MB at the beginning, {grown:.0f} MB more"
    logging.getLogger(__name__).info(told)
    assert grown < _MOST_MB, told


def test_a_bomb_of_a_design_is_refused_at_once(client: TestClient, base: dict[str, Any]) -> None:
    axes = {
        path: list(range(1, 400))
        for path in ("training.epochs", "training.batch_size", "model.num_queries",
                     "model.num_detections", "data.num_train", "data.num_val")
    }  # fmt: skip
    for sweep in (
        {"axes": axes},
        {"axes": axes, "search": {"kind": "random", "samples": 10**9}},
        {"axes": {"training.epochs": list(range(1, 9999))}, "seeds": list(range(999))},
    ):
        begun = time.perf_counter()
        answer = client.post("/experiments", json=base | {"sweep": sweep})
        assert answer.status_code == 400
        assert any(text in answer.text for text in ("too many trials", "combinations"))
        assert time.perf_counter() - begun < _MOST_SECONDS
