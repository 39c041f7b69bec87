"""Jobs by Ray's REST interface, against answers as Ray gives them."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx2
import pytest

from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.jobs import JobStatus, JobsUnreachableError
from focus_lab.lab.queue.ray_jobs import RayJobs

Answer = Callable[[httpx2.Request], httpx2.Response]


def jobs(answer: Answer, token: str | None = "word") -> RayJobs:
    made = RayJobs("http://head:8265/", token, "/opt/python")
    headers = made._client.headers
    made.close()
    made._client = httpx2.Client(
        base_url=made.address, headers=headers, transport=httpx2.MockTransport(answer)
    )
    return made


def test_a_driver_is_submitted_with_its_name_as_id() -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(200, json={"submission_id": "e-1"})

    jobs(answer).submit("e-1", "e", 1, "keep-ratio")
    [request] = asked
    assert (request.method, request.url.path) == ("POST", "/api/jobs/")
    assert request.headers["authorization"] == "Bearer word"
    assert json.loads(request.content) == {
        "submission_id": "e-1",
        "entrypoint": "/opt/python -m focus_lab.lab.queue.job e 1",
        "metadata": {"focus_lab.experiment": "keep-ratio", "focus_lab.attempt": "1"},
    }


def test_a_job_that_is_there_already_is_as_wanted() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(500, text="Traceback …\nValueError: already exists")
        return httpx2.Response(200, json={"status": "RUNNING"})

    jobs(answer).submit("e-1", "e", 1, "x")


def test_a_refused_job_is_told_and_tried_again() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(500, text="Traceback …\nNo available agent")
        return httpx2.Response(404, text="Job e-1 does not exist")

    with pytest.raises(JobsUnreachableError, match="got 500 No available agent; it is tried again"):
        jobs(answer).submit("e-1", "e", 1, "x")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("PENDING", JobStatus.PENDING),
        ("RUNNING", JobStatus.RUNNING),
        ("STOPPED", JobStatus.ENDED),
        ("SUCCEEDED", JobStatus.ENDED),
        ("FAILED", JobStatus.ENDED),
    ],
)
def test_states_are_ours(said: str, status: JobStatus) -> None:
    assert jobs(lambda _: httpx2.Response(200, json={"status": said})).status("e-1") is status


def test_what_ray_does_not_know_is_unknown_and_no_error() -> None:
    made = jobs(lambda _: httpx2.Response(404, text="no such job"))
    assert made.status("e-1") is JobStatus.UNKNOWN
    assert made.logs("e-1") == ""
    made.stop("e-1")


def test_machines_that_are_alive_count() -> None:
    found = [
        {"state": "ALIVE", "resources_total": {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}},
        {"state": "ALIVE", "resources_total": {"memory": 1e9}},
        {"state": "DEAD", "resources_total": {"CPU": 8.0}},
    ]
    content = {"data": {"result": {"result": found}}}
    capacity = jobs(lambda _: httpx2.Response(200, json=content)).capacity()
    assert capacity == Capacity((Resources(8.0, 2.0), Resources()))


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token_is_said(status: int) -> None:
    with pytest.raises(JobsUnreachableError, match="refuses the token"):
        jobs(lambda _: httpx2.Response(status)).status("e-1")


def test_a_cluster_that_is_away_is_no_failure_of_its_jobs() -> None:
    def away(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused", request=request)

    with pytest.raises(JobsUnreachableError, match="does not answer, got ConnectError"):
        jobs(away).status("e-1")
