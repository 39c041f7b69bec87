"""Open streams are limited, and nobody can take all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from focus_lab.lab.queue.dispatcher import Dispatcher
from service.problems import ProblemError
from service.state import State
from service.streams import Streams

Headers = Callable[..., dict[str, str]]


@pytest.fixture
def given_settings() -> dict[str, Any]:
    return {"auth": True, "max_streams": 3, "max_streams_per_user": 1}


def test_places_are_counted_by_user_and_given_back() -> None:
    streams = Streams("log", 3, 2)
    with streams.place("ann"), streams.place("ann"):
        with pytest.raises(ProblemError, match="ann has as many streams open") as refused:
            streams.place("ann").__enter__()
        assert (refused.value.status, refused.value.code) == (429, "too-many-streams-of-yours")
        with streams.place("bob"), pytest.raises(ProblemError, match="3 streams are open") as full:
            streams.place("cleo").__enter__()
        assert full.value.status == 503
        assert streams.open == 2
    assert streams.open == 0


@pytest.mark.parametrize("path", ["/experiments/one/log?follow=true", "/experiments/one/events"])
def test_one_user_cannot_take_the_streams_of_others(
    address: str,
    token: Headers,
    spec: Callable[..., dict[str, Any]],
    state: State,
    dispatcher: Dispatcher,
    path: str,
) -> None:
    ann, bob = token("ann"), token("bob")
    streams = state.log_streams if "log" in path else state.event_streams
    with httpx2.Client(base_url=address, timeout=20) as http:
        http.post("/experiments", json=spec("one"), headers=ann)
        # A log is followed while there is a driver.
        dispatcher.round()
        with http.stream("GET", path, headers=ann) as first:
            lines = first.iter_lines()
            assert next(lines)
            with http.stream("GET", path, headers=ann) as refused:
                assert refused.status_code == 429
                assert "ann has as many streams open" in refused.read().decode()
            with http.stream("GET", path, headers=bob) as other:
                assert other.status_code == 200
                assert streams.open == 2
        # The clients have gone, which the service sees soon.
        deadline = time.monotonic() + 20
        while streams.open and time.monotonic() < deadline:
            time.sleep(0.05)
        with http.stream("GET", path, headers=ann) as again:
            assert again.status_code == 200
