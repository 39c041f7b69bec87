"""Streams of events: complete, in order, from any place on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from focus_lab.errors import StoreError
from focus_lab.lab.queue.events import Cursor, Event
from focus_lab.lab.queue.states import Action
from focus_lab.lab.tables import EventRow
from service.feed import Feed
from service.frame import Frame
from service.state import State
from service.streams import Streams


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


Spec = Callable[..., dict[str, Any]]


async def take(feed: Feed, count: int, after: Cursor | None, experiment: str | None) -> list[Event]:
    found: list[Event] = []
    async for frames in feed.follow(after, experiment):
        found += [frame.event for frame in frames]
        if len(found) >= count:
            return found[:count]
    return found


@pytest.fixture
def past(state: State, monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released whenever the past of a listener has been read: from then on it hears what is new."""
    read, whole = threading.Semaphore(0), state.events.after

    def after(*arguments: Any, **more: Any) -> list[Event]:
        found = whole(*arguments, **more)
        if "experiment_id" in more:
            read.release()
        return found

    monkeypatch.setattr(state.events, "after", after)
    return read


def test_a_stream_begins_at_the_beginning_and_goes_on_where_it_broke(
    client: TestClient, spec: Spec, state: State
) -> None:
    made = client.post("/experiments", json=spec("one")).json()["experiment"]
    client.post("/experiments", json=spec("other"))
    for action in ("pause", "resume", "cancel"):
        client.post(f"/experiments/one/{action}")
    events = asyncio.run(take(state.feed, 4, Cursor(), made["id"]))
    assert [event.kind for event in events] == ["submitted", "pause", "resume", "cancel"]
    assert [event.data["version"] for event in events] == [0, 1, 2, 3]
    rest = asyncio.run(take(state.feed, 2, events[1].cursor, made["id"]))
    assert [event.kind for event in rest] == ["resume", "cancel"]
    assert asyncio.run(take(state.feed, 5, Cursor(), None))[-1] == rest[-1]


def test_a_feed_goes_on_after_whatever_goes_wrong(
    client: TestClient, spec: Spec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = state.events.after
    broken = [ValueError("an event that cannot be read")]

    def after(*arguments: Any, **more: Any) -> list[Event]:
        if broken and more == {"limit": 500}:
            raise broken.pop()
        return whole(*arguments, **more)

    monkeypatch.setattr(state.events, "after", after)
    feed = Feed(state.events)

    async def play() -> list[Event]:
        running = asyncio.create_task(feed.run())
        listening = asyncio.create_task(take(feed, 1, None, None))
        while not feed.listeners:
            await asyncio.sleep(0)
        while broken:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(client.post, "/experiments", json=spec("one"))
        found = await asyncio.wait_for(listening, 20)
        await feed.close()
        await running
        return found

    assert [event.kind for event in asyncio.run(play())] == ["submitted"]


def test_many_listeners_get_every_event_in_order_while_many_write(
    client: TestClient, spec: Spec, state: State
) -> None:
    ids = [
        client.post("/experiments", json=spec(f"e{n}")).json()["experiment"]["id"] for n in range(4)
    ]
    turns, listeners = 12, 20

    def write(entry: str) -> None:
        for _ in range(turns):
            state.queue.act(entry, Action.PAUSE, "tester")
            state.queue.act(entry, Action.RESUME, "tester")

    async def listen() -> list[list[Event]]:
        feed = Feed(state.events)
        running = asyncio.create_task(feed.run())
        start = state.events.newest()
        total = len(ids) * turns * 2
        waiting = [
            asyncio.create_task(take(feed, total, start, None)) for _ in range(listeners // 2)
        ]
        writers = [threading.Thread(target=write, args=(entry,)) for entry in ids]
        for writer in writers:
            writer.start()
        # Some come in the middle of it.
        waiting += [asyncio.create_task(take(feed, total, start, None)) for _ in range(10)]
        found = await asyncio.wait_for(asyncio.gather(*waiting), 60)
        for writer in writers:
            await asyncio.to_thread(writer.join)
        await feed.close()
        await running
        return found

    found = asyncio.run(listen())
    assert len(found) == listeners
    assert all(events == found[0] for events in found)
    for entry in ids:
        versions = [e.data["version"] for e in found[0] if e.experiment_id == entry]
        assert versions == list(range(1, 2 * turns + 1))


def test_an_event_is_written_once_for_all_who_listen(
    client: TestClient, spec: Spec, state: State, past: threading.Semaphore
) -> None:
    entry = client.post("/experiments", json=spec("one")).json()["experiment"]["id"]

    async def listen() -> list[Sequence[Frame]]:
        feed = Feed(state.events)
        streams = [feed.follow(None), feed.follow(None, entry)]
        waiting = [asyncio.create_task(anext(stream)) for stream in streams]
        for _ in streams:
            assert await asyncio.to_thread(past.acquire, timeout=20)
        await asyncio.to_thread(state.queue.act, entry, Action.PAUSE, "tester")
        running = asyncio.create_task(feed.run())
        found = [await asyncio.wait_for(one, 20) for one in waiting]
        await feed.close()
        await running
        return found

    [first], [second] = asyncio.run(listen())
    assert first is second
    fields = dict(line.split(": ", 1) for line in first.sent.decode().splitlines() if line)
    assert fields["event"] == "pause"
    assert Cursor.parse(fields["id"]) == first.event.cursor
    assert json.loads(fields["data"])["experiment_id"] == entry
    assert first.sent.endswith(b"\n\n")


def test_who_hears_nothing_is_told_so_now_and_then(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feed._QUIET_S", 0.01)

    async def listen() -> list[Sequence[Frame]]:
        stream = Feed(state.events).follow(None)
        return [await anext(stream), await anext(stream)]

    assert asyncio.run(listen()) == [[], []]


def test_a_stream_ends_without_an_error_when_the_store_is_away(
    client: TestClient, spec: Spec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/experiments", json=spec("one"))

    def away(*_: Any, **__: Any) -> list[Event]:
        raise StoreError("away")

    monkeypatch.setattr(state.events, "after", away)
    # The test's client would raise what the service has not caught.
    answer = client.get("/experiments/one/events")
    assert (answer.status_code, answer.text) == (200, ": focus_lab events\nretry: 2000\n\n")
    assert state.feed.listeners == 0


def test_a_listener_that_is_full_when_the_feed_closes_gets_all_that_it_had(
    client: TestClient, spec: Spec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feed._BEHIND", 3)
    entry = client.post("/experiments", json=spec("one")).json()["experiment"]["id"]

    async def listen() -> list[Event]:
        feed = Feed(state.events)
        stream = feed.follow(None, entry)
        first = asyncio.create_task(anext(stream))
        while feed._cursor is None:
            await asyncio.sleep(0)
        running = asyncio.create_task(feed.run())
        await asyncio.to_thread(state.queue.act, entry, Action.PAUSE, "tester")
        seen = list(await first)
        # The first may have been read as past too; from the second on there is the listener alone.
        await asyncio.to_thread(state.queue.act, entry, Action.RESUME, "tester")
        seen += await anext(stream)
        for action in (Action.PAUSE, Action.RESUME, Action.PAUSE):
            await asyncio.to_thread(state.queue.act, entry, action, "tester")
        [listener] = feed._listeners
        while not listener.frames.full():
            await asyncio.sleep(0.01)
        await feed.close()
        await running
        async for frames in stream:
            seen += frames
        return [frame.event for frame in seen]

    seen = asyncio.run(asyncio.wait_for(listen(), 30))
    assert [event.data["version"] for event in seen] == [1, 2, 3, 4, 5]


def test_a_listener_that_is_too_slow_is_let_go_and_comes_back_for_the_rest(
    client: TestClient, spec: Spec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.feed._BEHIND", 3)
    entry = client.post("/experiments", json=spec("one")).json()["experiment"]["id"]

    async def listen() -> tuple[list[Event], list[Event]]:
        feed = Feed(state.events)
        stream = feed.follow(Cursor(), entry)
        # The past has been read; what follows comes from the feed alone.
        seen = [frame.event for frame in await anext(stream)]
        for _ in range(5):
            await asyncio.to_thread(state.queue.act, entry, Action.PAUSE, "tester")
            await asyncio.to_thread(state.queue.act, entry, Action.RESUME, "tester")
        # All ten in one reading, of which the listener holds three.
        running = asyncio.create_task(feed.run())
        async for frames in stream:
            seen += [frame.event for frame in frames]
        await feed.close()
        await running
        rest = await take(Feed(state.events), 11 - len(seen), seen[-1].cursor, entry)
        return seen, rest

    seen, rest = asyncio.run(asyncio.wait_for(listen(), 30))
    assert [e.data["version"] for e in seen] == list(range(4))
    assert [e.data["version"] for e in rest] == list(range(4, 11))


def test_whoever_is_ahead_of_a_restored_store_is_told_what_comes(
    client: TestClient, spec: Spec, state: State, past: threading.Semaphore
) -> None:
    entry = client.post("/experiments", json=spec("one")).json()["experiment"]["id"]
    for action in (Action.PAUSE, Action.RESUME):
        state.queue.act(entry, action, "tester")
    database = state.queue.store.database
    # The id of an event that the store, now older or on another server, does not have.
    ahead = Cursor(10**15 if database.is_postgresql else 0, 1000)
    with database.session() as session:
        # As `adopt` leaves them.
        session.execute(sa.update(EventRow).values(transaction=0))

    async def listen() -> list[Event]:
        feed = Feed(state.events)
        running = asyncio.create_task(feed.run())
        waiting = asyncio.create_task(take(feed, 2, ahead, entry))
        assert await asyncio.to_thread(past.acquire, timeout=20)
        for action in (Action.PAUSE, Action.RESUME):
            await asyncio.to_thread(state.queue.act, entry, action, "tester")
        found = await asyncio.wait_for(waiting, 20)
        await feed.close()
        await running
        return found

    assert [event.data["version"] for event in asyncio.run(listen())] == [3, 4]


def test_who_comes_while_the_service_ends_is_told_what_there_was(
    client: TestClient, spec: Spec, state: State
) -> None:
    entry = client.post("/experiments", json=spec("one")).json()["experiment"]["id"]

    async def listen() -> list[Event]:
        feed = Feed(state.events)
        await feed.close()
        return await take(feed, 5, Cursor(), entry)

    found = asyncio.run(asyncio.wait_for(listen(), 20))
    assert [event.kind for event in found] == ["submitted"]


def test_a_stream_is_refused_before_it_begins(client: TestClient, spec: Spec) -> None:
    client.post("/experiments", json=spec("one"))
    assert client.get("/experiments/nope/events").status_code == 404
    for bad in ("x", "1-2-3", "-1-0", "9" * 30):
        answer = client.get("/experiments/one/events", headers={"Last-Event-ID": bad})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")


def test_streams_are_limited(client: TestClient, spec: Spec, state: State) -> None:
    client.post("/experiments", json=spec("one"))
    state.event_streams = Streams("events", 0, 0)
    answer = client.get("/experiments/one/events")
    assert (answer.status_code, answer.json()["code"]) == (503, "too-many-streams")
