"""Submitting, finding and changing experiments over REST, on both kinds of databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.jobs import JobStatus, MemoryJobs
from focus_lab.lab.queue.policy import Policy, Quota, Quotas
from focus_lab.lab.queue.registry import Registry
from service.state import State

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)

Spec = Callable[..., dict[str, Any]]
RATIO = "model.token_selection.keep_ratio"


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def code_of(answer: Any) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    content = answer.json()
    assert content["status"] == answer.status_code
    assert content["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, content["code"]


def test_a_submission_is_accepted_and_found_where_it_says(client: TestClient, spec: Spec) -> None:
    answer = client.post("/experiments", json=spec("one"))
    assert answer.status_code == 202
    made = answer.json()["experiment"]
    assert (made["state"], made["name"], answer.json()["created"]) == ("QUEUED", "one", True)
    found = client.get(answer.headers["location"])
    assert found.json()["id"] == made["id"]
    assert found.json()["spec"]["name"] == "one"
    assert client.get("/experiments/one").json()["id"] == made["id"]


def test_yaml_is_json_with_another_content_type(client: TestClient, spec: Spec) -> None:
    text = yaml.safe_dump(spec("one"))
    first = client.post(
        "/experiments", content=text, headers={"content-type": "application/yaml; charset=utf-8"}
    )
    assert first.status_code == 202
    again = client.post("/experiments", json=spec("one"))
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert again.json()["experiment"]["id"] == first.json()["experiment"]["id"]


def test_the_same_key_is_the_same_submission(client: TestClient, spec: Spec) -> None:
    key = {"Idempotency-Key": "abc-1"}
    first = client.post("/experiments", json=spec("one"), headers=key)
    again = client.post("/experiments", json=spec("one"), headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    other = client.post("/experiments", json=spec("two"), headers=key)
    assert code_of(other) == (409, "idempotency-key-reused")
    assert [e["name"] for e in client.get("/experiments").json()["items"]] == ["one"]


def test_of_many_equal_submissions_at_once_one_is_made(client: TestClient, spec: Spec) -> None:
    def send(number: int) -> Any:
        return client.post(
            "/experiments", json=spec("one"), headers={"Idempotency-Key": f"k{number % 2}"}
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {a.status_code for a in answers} <= {200, 202}
    assert sum(a.json()["created"] for a in answers) == 1
    assert len({a.json()["experiment"]["id"] for a in answers}) == 1


def test_all_mistakes_of_a_spec_are_said_at_once_with_their_lines(
    client: TestClient, spec: Spec
) -> None:
    content = spec("one", named="x")
    content["training"] = content["training"] | {"epochs": 0}
    answer = client.post(
        "/experiments", content=yaml.safe_dump(content), headers={"content-type": "text/yaml"}
    )
    assert code_of(answer) == (400, "spec-invalid")
    errors = answer.json()["errors"]
    assert len(errors) == 2
    assert any("training.epochs: must be greater than 0, got 0" in error for error in errors)
    assert any("did you mean name?" in error for error in errors)
    assert all(error.startswith("request:") for error in errors)
    assert client.get("/experiments").json()["items"] == []


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("{}", "text/plain", (415, "content-type")),
        ("{}", "application/json", (400, "spec-invalid")),
        ("extends: /etc/passwd", "application/yaml", (400, "spec-invalid")),
        ("a: &x 1\nb: *x", "application/yaml", (400, "spec-invalid")),
        ("[" * 1000, "application/json", (400, "spec-invalid")),
        ("{", "application/json", (400, "spec-invalid")),
        ("", "application/json", (400, "spec-invalid")),
    ],
)
def test_what_is_no_spec_is_refused(
    client: TestClient, text: str, kind: str, expected: tuple[int, str]
) -> None:
    answer = client.post("/experiments", content=text, headers={"content-type": kind})
    assert code_of(answer) == expected


def test_a_plan_queues_nothing(client: TestClient, spec: Spec) -> None:
    content = spec("one", sweep={"axes": {RATIO: [0.3, 1.0]}, "seeds": [0, 1]})
    answer = client.post("/experiments?plan=true", json=content)
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["trials"] == 4
    assert [cell["keep_ratio"] for cell in plan["cells"]] == [0.3, 1.0]
    assert [cell["trials"] for cell in plan["cells"]] == [2, 2]
    assert client.get("/experiments").json()["items"] == []


def test_too_many_trials_are_refused_before_they_are_expanded(
    client: TestClient, spec: Spec
) -> None:
    axes = {f"model.loss.{name}_weight": list(range(1, 200)) for name in ("class", "bbox", "giou")}
    answer = client.post("/experiments", json=spec("one", sweep={"axes": axes}))
    assert code_of(answer) == (400, "spec-invalid")
    assert "too many trials, got 7880599" in answer.json()["detail"]


def test_pages_go_on_where_the_last_one_ended(client: TestClient, spec: Spec) -> None:
    for number in range(7):
        client.post("/experiments", json=spec(f"e{number}"))
    names: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get("/experiments", params={"limit": "3", **cursor}).json()
        names += [item["name"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert names == [f"e{number}" for number in reversed(range(7))]
    assert code_of(client.get("/experiments?cursor=nonsense")) == (400, "bad-request")
    assert [i["name"] for i in client.get("/experiments?name=e3").json()["items"]] == ["e3"]
    assert client.get("/experiments?state=RUNNING").json()["items"] == []
    assert client.get("/experiments?user=nobody").json()["items"] == []


def test_whoever_waits_is_told_why(
    client: TestClient, spec: Spec, dispatcher: Dispatcher, state: State
) -> None:
    names = ["first", "second", "third"]
    for name in names:
        client.post("/experiments", json=spec(name, compute={"cpus_per_worker": 2.0}))
    waits = {n: client.get(f"/experiments/{n}").json()["wait"] for n in names}
    assert "no dispatcher runs" in waits["first"]["text"]
    dispatcher.round()
    dispatcher.round()
    state.board.look_again()
    shown = {n: client.get(f"/experiments/{n}").json() for n in names}
    assert [shown[n]["state"] for n in names] == ["STARTING", "QUEUED", "QUEUED"]
    assert shown["first"]["wait"] is None
    assert shown["second"]["wait"] == {
        "position": 1,
        "reason": "room",
        "text": "a trial needs 2 cores; free now: 0 cores",
    }
    assert shown["third"]["wait"]["position"] == 2
    client.patch("/experiments/third", json={"priority": 50})
    state.board.look_again()
    assert client.get("/experiments/third").json()["wait"]["position"] == 1


def test_actions_lead_where_they_say(
    client: TestClient, spec: Spec, dispatcher: Dispatcher, jobs: MemoryJobs
) -> None:
    client.post("/experiments", json=spec("one"))

    def act(action: str) -> str:
        answer = client.post(f"/experiments/one/{action}")
        assert answer.status_code == 202, answer.text
        state: str = answer.json()["state"]
        return state

    assert [act("pause"), act("resume"), act("cancel"), act("retry")] == [
        "PAUSED", "QUEUED", "CANCELLED", "QUEUED",
    ]  # fmt: skip
    dispatcher.round()
    [job] = jobs.jobs.values()
    job.status = JobStatus.RUNNING
    assert act("cancel") == "CANCELLING"
    assert code_of(client.post("/experiments/one/retry")) == (409, "not-allowed-now")
    dispatcher.round()
    assert job.stop_asked
    job.status = JobStatus.ENDED
    dispatcher.round()
    assert client.get("/experiments/one").json()["state"] == "CANCELLED"
    assert code_of(client.post("/experiments/nope/cancel")) == (404, "no-such-experiment")


def test_several_are_cancelled_at_once_each_with_its_own_answer(
    client: TestClient, spec: Spec
) -> None:
    for name in ("a", "b"):
        client.post("/experiments", json=spec(name))
    answer = client.post("/experiments/cancel", json={"ids": ["a", "nope", "b", "a"]})
    outcomes = {item["id"]: item for item in answer.json()["items"]}
    assert outcomes["a"]["state"] == outcomes["b"]["state"] == "CANCELLED"
    assert "no such name" in outcomes["nope"]["problem"]
    half = client.post(
        "/experiments/cancel",
        content=b'{"ids": ["\\ud800"]}',
        headers={"content-type": "application/json"},
    )
    assert code_of(half) == (422, "shape")


def test_who_asks_for_costs_keeps_nobody_else_waiting(
    client: TestClient, spec: Spec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = threading.Event()

    def slowly(content: dict[str, Any]) -> dict[str, Any]:
        counted.wait(60)
        return {}

    monkeypatch.setattr(state.costs, "_count", slowly)
    with ThreadPoolExecutor(30) as pool:
        asked = [
            pool.submit(client.post, "/experiments?plan=true&cost=true", json=spec(f"e{n}"))
            for n in range(20)
        ]
        begun = time.perf_counter()
        # More are asked for than there are threads for requests.
        refused = [next(as_completed(asked)).result()]
        assert client.get("/experiments").status_code == 200
        assert time.perf_counter() - begun < 20
        counted.set()
        answers = [one.result() for one in asked]
    assert refused[0].status_code == 503
    codes = {answer.status_code: answer for answer in answers}
    assert set(codes) == {200, 503}
    assert code_of(codes[503]) == (503, "cost-busy")


class TestWithLimits:
    """A policy with quotas and registered data."""

    @pytest.fixture
    def policy(self) -> Policy:
        quotas = Quotas(default_user=Quota(queued=2))
        registry = Registry(datasets={"fish": "/srv/fish"}, weights={"lite0": "package:lite0"})
        return Policy(quotas=quotas, registry=registry, most_trials=4)

    def test_a_quota_is_said(self, client: TestClient, spec: Spec) -> None:
        for name in ("a", "b"):
            assert client.post("/experiments", json=spec(name)).status_code == 202
        refused = client.post("/experiments", json=spec("c"))
        assert code_of(refused) == (429, "quota")
        assert "user local has 2 experiments that wait or run; 2 are allowed" in refused.text
        client.post("/experiments/a/cancel")
        assert client.post("/experiments", json=spec("c")).status_code == 202

    @pytest.mark.parametrize(
        ("part", "sentence"),
        [
            ({"root": "/etc"}, "data.root: is not registered with this service, got '/etc'"),
            ({"root": "@fsh"}, 'data.root: is not registered with this service, got \'@fsh\'; '
             'registered are "@fish"'),
            (
                {"root": "@fish", "train": {"images": "../..", "annotations": "/etc/passwd"}},
                "data.train.images: must stay inside the data set",
            ),
        ],
    )  # fmt: skip
    def test_no_path_of_a_client_is_taken(
        self, client: TestClient, spec: Spec, part: dict[str, Any], sentence: str
    ) -> None:
        content = spec("one")
        content["data"] = {"kind": "coco", **part}
        answer = client.post("/experiments?plan=true", json=content)
        assert code_of(answer) == (400, "spec-invalid")
        assert sentence in " ".join([answer.json()["detail"], *answer.json()["errors"]])

    def test_what_is_registered_is_shown_by_name_and_can_be_submitted_again(
        self, client: TestClient, spec: Spec
    ) -> None:
        content = spec("one", sweep={"axes": {"data.root": ["@fish"]}})
        content["data"] = {"kind": "coco", "root": "@fish"}
        content["training"]["start_from"] = "@lite0"
        assert client.post("/experiments", json=content).status_code == 202
        shown = client.get("/experiments/one").json()["spec"]
        assert shown["data"]["root"] == "@fish"
        assert shown["sweep"]["axes"] == {"data.root": ["@fish"]}
        assert shown["training"]["start_from"] == "@lite0"
        copy = client.get("/ui/submit?from=one").text
        assert "@fish" in copy
        assert "/srv/fish" not in copy
        again = client.post("/experiments", json=shown)
        assert (again.status_code, again.json()["created"]) == (200, False)

    def test_neither_in_an_axis_nor_in_a_cell(self, client: TestClient, spec: Spec) -> None:
        content = spec("one", sweep={"axes": {"data.root": ["@fish", "/etc"]}})
        content["data"] = {"kind": "coco", "root": "@fish"}
        answer = client.post("/experiments?plan=true", json=content)
        assert code_of(answer) == (400, "spec-invalid")
        content["sweep"] = {"cells": {"other": {"data.root": "/etc"}}}
        answer = client.post("/experiments?plan=true", json=content)
        assert "got '/etc'" in answer.json()["detail"]
        content["sweep"] = {}
        assert client.post("/experiments?plan=true", json=content).status_code == 200

    @pytest.mark.parametrize(
        "search",
        [
            {"kind": "optuna", "samples": 2, "batch": 1},
            {"kind": "random", "samples": 1},
            {"kind": "random", "samples": 1, "seed": 1},
        ],
    )
    @pytest.mark.parametrize(
        ("path", "values", "sentence"),
        [
            ("training.start_from", ["@lite0", "/etc/passwd"], "training.start_from: is not reg"),
            ("data.root", ["@fish", "/etc"], "data.root: is not registered"),
            ("training", [{"epochs": 2}, {"start_from": "/etc/passwd"}], "start_from: is not reg"),
            ("data.train", [{"images": "a"}, {"images": "../.."}], "images: must stay inside"),
            (
                "model.backbone",
                [{"kind": "resnet", "weights": "@lite0"}, {"kind": "resnet", "weights": "/etc/x"}],
                "model.backbone.weights: is not registered",
            ),
        ],
    )
    def test_nor_where_a_search_may_come_to_later(
        self,
        client: TestClient,
        spec: Spec,
        search: dict[str, Any],
        path: str,
        values: list[Any],
        sentence: str,
    ) -> None:
        content = spec("one", sweep={"axes": {path: values}, "search": search})
        content["data"] = {"kind": "coco", "root": "@fish"}
        answer = client.post("/experiments", json=content)
        assert code_of(answer) == (400, "spec-invalid")
        assert sentence in answer.json()["detail"]
        # What is registered may be searched through.
        content["sweep"]["axes"] = {"training.start_from": ["@lite0", None]}
        assert client.post("/experiments", json=content).status_code == 202

    def test_training_starts_from_registered_weights_only(
        self, client: TestClient, spec: Spec
    ) -> None:
        content = spec("one")
        content["training"]["start_from"] = "/srv/weights.pt"
        answer = client.post("/experiments?plan=true", json=content)
        assert code_of(answer) == (400, "spec-invalid")
        assert "training.start_from: is not registered" in answer.json()["detail"]
        content["training"]["start_from"] = "@lite0"
        assert client.post("/experiments?plan=true", json=content).status_code == 200
