"""The client of a service: what it tries again, for how long, and what it says at last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from focus_lab.client import Client
from focus_lab.client import client as module
from focus_lab.client.client import RefusedError, ServiceError, ServiceUnreachableError
from focus_lab.errors import UserError

ME = {"user": "ann", "project": "fish", "scope": "submit"}
PAGE = "<html><head><title>Away</title></head><body>nginx</body></html>"
Answer = Callable[[httpx2.Request], httpx2.Response]


class Clock:
    """Time passes only where the client waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def told() -> list[str]:
    """What the client has noted."""
    return []


@pytest.fixture
def connect(clock: Clock, told: list[str]) -> Callable[..., Client]:
    def make(answer: Answer, patience_s: float = 60.0) -> Client:
        return Client(
            "http://lab", patience_s=patience_s, note=told.append, pause=clock.pause,
            transport=httpx2.MockTransport(answer),
        )  # fmt: skip

    return make


def page(status: int) -> httpx2.Response:
    """Of a proxy."""
    return httpx2.Response(status, html=PAGE)


def problem(status: int, code: str) -> httpx2.Response:
    content = {"type": f"urn:{code}", "title": "No", "status": status, "code": code}
    return httpx2.Response(status, json=content | {"detail": f"{code}: is so"})


def in_turn(*answers: httpx2.Response | Exception) -> tuple[Answer, list[httpx2.Request]]:
    """One after the other, the last for ever; and the requests that came."""
    came: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        came.append(request)
        found = answers[min(len(came), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    return answer, came


TEMPORARY = [
    *(page(status) for status in (502, 503, 504)),
    httpx2.Response(503, json={"message": "no healthy upstream"}),
    httpx2.Response(504),
    *(
        problem(503, code)
        for code in (
            "store-unreachable", "cluster-unreachable", "tracker-unusable", "too-many-streams"
        )
    ),
    problem(429, "rate"),
    problem(429, "too-many-streams-of-yours"),
]  # fmt: skip


def named(value: object) -> str | None:
    if isinstance(value, httpx2.Response):
        return f"{value.status_code}-{value.text[:60]}"
    return None


@pytest.mark.parametrize("first", TEMPORARY, ids=named)
def test_what_is_away_for_now_is_asked_again(
    connect: Callable[..., Client], told: list[str], first: httpx2.Response
) -> None:
    answer, came = in_turn(first, first, httpx2.Response(200, json=ME))
    assert connect(answer).whoami().user == "ann"
    assert len(came) == 3
    assert len(told) == 1
    assert "trying again" in told[0]


@pytest.mark.parametrize("first", TEMPORARY, ids=named)
def test_a_stream_of_what_is_away_for_now_is_asked_for_again(
    connect: Callable[..., Client], first: httpx2.Response
) -> None:
    answer, came = in_turn(first, first, httpx2.Response(200, content=text_of(2)))
    events = connect(answer).events("one")
    assert [next(events)[0], next(events)[0]] == ["0-1", "0-2"]
    assert len(came) == 3


@pytest.mark.parametrize(
    ("answered", "kind", "words"),
    [
        (problem(503, "cost-timeout"), ServiceError, "cost-timeout: is so"),
        (problem(500, "internal"), ServiceError, "internal: is so"),
        (problem(409, "name-taken"), RefusedError, "name-taken: is so"),
        (problem(429, "quota"), RefusedError, "quota: is so"),
        (page(500), ServiceError, "is none of focus_lab, got 500"),
        (page(404), ServiceError, "is none of focus_lab, got 404"),
        (httpx2.Response(301), ServiceError, "is none of focus_lab, got 301"),
    ],
    ids=named,
)
def test_a_final_word_is_told_at_once(
    connect: Callable[..., Client],
    told: list[str],
    answered: httpx2.Response,
    kind: type[Exception],
    words: str,
) -> None:
    answer, came = in_turn(answered)
    with pytest.raises(kind, match=words) as error:
        connect(answer).whoami()
    assert not isinstance(error.value, ServiceUnreachableError)
    with pytest.raises(kind, match=words):
        next(connect(answer).events("one"))
    assert len(came) == 2
    assert not told


@pytest.mark.parametrize(
    ("answered", "words"),
    [
        (page(502), "service http://lab: does not answer, got 502 Bad Gateway; start it with"),
        (
            problem(503, "store-unreachable"),
            "service http://lab: cannot do it now, got: store-unreachable: is so",
        ),
        (httpx2.ConnectError("refused"), "does not answer, got refused; start it with"),
    ],
)
def test_patience_ends_with_a_sentence(
    connect: Callable[..., Client],
    clock: Clock,
    told: list[str],
    answered: httpx2.Response | Exception,
    words: str,
) -> None:
    for ask in (
        lambda client: client.whoami(),
        lambda client: next(client.events("one")),
    ):
        begun = clock.now
        answer, came = in_turn(answered)
        with pytest.raises(ServiceUnreachableError) as error:
            ask(connect(answer))
        assert words in str(error.value)
        assert 30 < clock.now - begun < 80
        assert len(came) > 5
    assert len(told) == 2


def test_a_submission_that_a_proxy_lost_is_repeated_with_its_key(
    connect: Callable[..., Client],
) -> None:
    answer, came = in_turn(page(502), httpx2.ReadError("cut"), problem(409, "name-taken"))
    with pytest.raises(RefusedError):
        connect(answer).submit({"name": "one"}, priority=2)
    keys = {request.headers["idempotency-key"] for request in came}
    assert (len(came), len(keys)) == (3, 1)
    assert {request.content for request in came} == {came[0].content}
    assert {request.url.params["priority"] for request in came} == {"2"}
    other, later = in_turn(problem(409, "name-taken"))
    with pytest.raises(RefusedError):
        connect(other).submit({"name": "one"}, priority=2)
    assert later[0].headers["idempotency-key"] not in keys


def test_actions_that_a_proxy_lost_are_repeated(connect: Callable[..., Client]) -> None:
    answer, came = in_turn(page(504), problem(409, "not-allowed-now"))
    for action in ("cancel", "pause", "resume"):
        came.clear()
        with pytest.raises(RefusedError):
            getattr(connect(answer), action)("one")
        assert [request.url.path for request in came] == [f"/experiments/one/{action}"] * 2


class Lost:
    """A service that does what it is asked, and whose first answer to a change is lost.

    Args:
        fails_at_once: whether what is queued again has failed before anybody asks again.
    """

    def __init__(self, fails_at_once: bool) -> None:
        self.version, self.queued, self.state = 7, 0, "FAILED"
        self._fails_at_once, self._lose = fails_at_once, True

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            if request.headers["if-match"] != f'"{self.version}"':
                return problem(412, "changed-meanwhile")
            self.version, self.queued, self.state = self.version + 1, self.queued + 1, "QUEUED"
            if self._fails_at_once:
                self.version, self.state = self.version + 3, "FAILED"
            if self._lose:
                self._lose = False
                raise httpx2.ReadError("cut")
        at = f"2026-01-01T00:00:{self.queued:02d}Z"
        content = {
            "id": "1" * 32, "name": "one", "description": "", "user": "ann", "project": "fish",
            "state": self.state, "priority": 0, "version": self.version, "attempt": 1, "trials": 1,
            "submitted_at": at, "queued_at": at, "started_at": None, "ended_at": None,
            "message": None, "wait": None, "trial_states": {}, "spec": {}, "cpus": 1, "gpus": 0,
            "comparison_url": None, "report_ready": False,
        }  # fmt: skip
        return httpx2.Response(200, json=content)


@pytest.mark.parametrize("fails_at_once", [False, True])
def test_a_retry_whose_answer_was_lost_queues_it_once(
    connect: Callable[..., Client], fails_at_once: bool
) -> None:
    service = Lost(fails_at_once)
    found = connect(service).retry("one")
    assert service.queued == 1
    assert found.state == ("FAILED" if fails_at_once else "QUEUED")


def test_a_file_is_asked_for_by_the_name_it_is_listed_under(
    connect: Callable[..., Client], tmp_path: Path
) -> None:
    answer, came = in_turn(httpx2.Response(200, content=b"text"))
    path = "trials/keep=50%,a?b#c d/log.txt"
    connect(answer).download("one", path, tmp_path / "log.txt")
    assert unquote(came[0].url.raw_path.decode()) == f"/experiments/one/artifacts/{path}"
    assert came[0].url.query == b""


# Streams


def text_of(count: int) -> bytes:
    """A stream as the service writes it: a comment, events, now and then a sign of life."""
    parts = [": focus_lab events\nretry: 2000\n\n"]
    for number in range(1, count + 1):
        data = {
            "experiment_id": "e", "at": "2026-01-01T00:00:00Z", "kind": "trial", "actor": "ann",
            "data": {"number": number, "text": "größer"},
        }  # fmt: skip
        said = json.dumps(data, ensure_ascii=False)
        parts.append(f"event: trial\ndata: {said}\nid: 0-{number}\n\n")
        parts.append(": ping\n\n" if number % 2 else "")
    return "".join(parts).encode()


class CutStream:
    """A service whose connection breaks after so many bytes of each stream.

    Args:
        bytes_each: until it breaks; None where it never does.
        total: number of events that there are.
    """

    def __init__(self, bytes_each: list[int], total: int) -> None:
        self._lengths, self._total = list(bytes_each), total
        self.asked: list[str | None] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        last = request.headers.get("last-event-id")
        self.asked.append(last)
        known = int(last.partition("-")[2]) if last else 0
        blocks = text_of(self._total).split(b"\n\n")
        number, kept = 0, []
        for block in blocks:
            number += b"event:" in block
            if number > known or b"event:" not in block:
                kept.append(block)
        content = b"\n\n".join(kept)
        length = self._lengths.pop(0) if self._lengths else None

        def body() -> Iterator[bytes]:
            whole = content if length is None else content[:length]
            for begin in range(0, len(whole), 7):
                yield whole[begin : begin + 7]
            if length is not None:
                raise httpx2.ReadError("cut")

        return httpx2.Response(200, content=body())


def test_a_stream_that_breaks_anywhere_goes_on_without_loss_or_repetition(
    connect: Callable[..., Client],
) -> None:
    total = 3
    for length in range(len(text_of(total))):
        service = CutStream([length, 250], total)
        events = connect(service).events("one")
        found = [next(events) for _ in range(total)]
        assert [event_id for event_id, _ in found] == ["0-1", "0-2", "0-3"], length
        assert [event.data["number"] for _, event in found] == [1, 2, 3]
        assert service.asked[0] is None
        assert {event.data["text"] for _, event in found} == {"größer"}


def test_a_stream_begins_after_the_event_that_is_known(connect: Callable[..., Client]) -> None:
    service = CutStream([], 3)
    assert next(connect(service).events("one", after="0-2"))[0] == "0-3"
    assert service.asked == ["0-2"]


def test_hours_without_events_do_not_use_up_the_patience(
    connect: Callable[..., Client], clock: Clock, told: list[str]
) -> None:
    quiet = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal quiet
        quiet += 1
        if quiet > 4:
            return httpx2.Response(200, content=text_of(1))

        def body() -> Iterator[bytes]:
            yield b": focus_lab events\n\n"
            clock.now += 3600
            yield b": ping\n\n"
            raise httpx2.ReadError("cut")

        return httpx2.Response(200, content=body())

    assert next(connect(answer, patience_s=10).events("one"))[0] == "0-1"
    assert len(told) == 4


@pytest.mark.parametrize("token", ["tök", "a\nb", "a\x00"])
def test_a_token_that_can_be_none_is_told_and_not_shown(token: str) -> None:
    with pytest.raises(UserError, match="focus-lab token create") as error:
        Client("http://lab", token)
    assert token not in str(error.value)


def test_an_answer_of_another_service_is_told(connect: Callable[..., Client]) -> None:
    content: dict[str, Any] = {"hello": "world"}
    answer, _ = in_turn(httpx2.Response(200, json=content))
    with pytest.raises(ServiceError, match="speaks another version"):
        connect(answer).whoami()
