"""The lookout: the same places as without it, whatever becomes of its process."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import StoreError
from focus_lab.lab.queue.attempts import Attempts
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.plan import plan
from service.board import Board, look_through
from service.lookout import Lookout, answer_all


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'lab.db'}"


@pytest.fixture
def queue(url: str, tiny_experiment: Callable[..., Any], tmp_path: Path) -> Iterator[Queue]:
    store = Store(url)
    made = Queue(store)
    for name in ("one", "two"):
        spec = tiny_experiment().model_copy(update={"name": name})
        made.submit(spec, plan(spec), tmp_path / name, Submitter("alice"))
    yield made
    store.close()


def test_it_sees_what_is_seen_without_it_and_starts_again_when_it_has_died(
    queue: Queue, url: str
) -> None:
    there = look_through(queue, Attempts(queue.store.database, queue.policy))
    with contextlib.closing(Lookout(url, lambda: queue.policy)) as look:
        assert list(look().items()) == list(there.items())
        assert [place.position for place in there.values()] == [1, 2]
        process = look._process
        assert process is not None
        process.kill()
        process.wait()
        assert dict(look()) == there
        again = look._process
    assert again is not None
    assert again.poll() == 0


def test_a_sentence_is_sent_once_however_many_wait_for_the_same(queue: Queue, url: str) -> None:
    first = json.dumps({"store": url, "policy": Policy().model_dump(mode="json")})
    answers = io.StringIO()
    answer_all(io.StringIO(f"{first}\nlook\n"), answers)
    told = json.loads(answers.getvalue())
    ids = [queue.entry(name).id for name in ("one", "two")]
    assert (told["order"], told["said"]) == (ids, [0, 0])
    [(reason, text)] = told["sentences"]
    assert reason == "no-cluster"
    assert "no dispatcher runs" in text


@pytest.mark.parametrize("fails", [False, True])
def test_whoever_waits_for_the_first_look_does_not_look_again(fails: bool) -> None:
    looks = []
    asked = threading.Semaphore(0)

    def look() -> Any:
        looks.append(1)
        # Until all others wait for it, or are about to.
        for _ in threads:
            assert asked.acquire(timeout=20)
        if fails:
            raise StoreError("away")
        return {"a": "place"}

    board = Board(look)
    found: list[Any] = []

    def ask() -> None:
        asked.release()
        with contextlib.suppress(StoreError):
            found.append(board.places())

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(looks) == 1
    assert found == ([{}] * 11 if fails else [{"a": "place"}] * 12)


def test_it_goes_by_the_policy_of_now(queue: Queue, url: str) -> None:
    policies = [Policy()]
    with contextlib.closing(Lookout(url, lambda: policies[-1])) as look:
        assert len(look()) == 2
        before = look._process
        assert before is not None
        look()
        assert look._process is before
        policies.append(Policy(quotas={"default_user": {"running": 1}}))
        assert len(look()) == 2
        assert before.poll() == 0


def test_a_store_that_fails_is_told(
    queue: Queue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StoreError("the store is away")

    monkeypatch.setattr("service.lookout.look_through", away)
    first = json.dumps({"store": url, "policy": Policy().model_dump(mode="json")})
    answers = io.StringIO()
    answer_all(io.StringIO(f"{first}\nlook\nlook\n"), answers)
    assert answers.getvalue().splitlines() == ['{"error": "the store is away"}'] * 2


def test_a_board_shows_what_was_before_while_it_looks_and_after_it_could_not(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr("service.board.time.monotonic", lambda: moment[0])
    started: list[Callable[[], None]] = []

    class Later:
        def __init__(self, target: Callable[[], None], **_: Any) -> None:
            self.start = lambda: started.append(target)

    monkeypatch.setattr("service.board.threading.Thread", Later)
    answers: list[Any] = [{"a": "first"}, StoreError("away"), {"a": "third"}]

    def look() -> Any:
        moment[0] += 1.0  # it takes its time
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    board = Board(look)
    moment[0] = 1.0
    assert board.places() == {"a": "first"}
    for seen in ("first", "third"):
        moment[0] += 25.0
        # Stale: whoever asks is not kept waiting, and there is one look only.
        assert [board.places(), board.places()] == [{"a": "first"}] * 2
        [later] = started
        started.clear()
        later()
        assert board.places() == {"a": seen}
    # After a night in which nobody asked, whoever asks waits for it.
    moment[0] += 10_000.0
    answers.append({"a": "morning"})
    assert board.places() == {"a": "morning"}
    assert started == []
