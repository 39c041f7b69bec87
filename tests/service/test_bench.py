"""`bench service`: what it says of a service's memory is what it saw."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_lab.errors import FocusLabError
from service.bench import GOALS_MS, Load, bench_service
from service.bench_listeners import Listeners
from service.bench_load import paced, percentile, slope


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-5, 5))
def test_a_slope_is_the_part_that_rises(noise: list[float], rises: float) -> None:
    # There and back again, so that the noise has no slope of its own.
    around = [*noise, *reversed(noise)]
    values = [rises * number + value for number, value in enumerate(around)]
    assert slope(values) == pytest.approx(rises, abs=1e-6)
    assert slope(values[:1]) == 0.0


@pytest.mark.parametrize(("percent", "value"), [(50, 5.0), (99, 10.0), (100, 10.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_there_was(percent: float, value: float) -> None:
    assert percentile([float(n) for n in range(10, 0, -1)], percent) == value


def test_a_slow_answer_delays_no_request_after_it() -> None:
    running, most = 0, 0

    async def slow() -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.3)
        running -= 1
        return 1.0

    assert asyncio.run(paced(slow, per_s=100.0, seconds=0.1)) == [1.0] * 10
    assert most == 10


def test_streams_that_are_refused_are_an_error_and_not_waited_for() -> None:
    # Bound, and nobody listens: whoever comes is refused.
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"

        async def listen() -> None:
            async with Listeners(address, {}, 3):
                pass

        with pytest.raises(FocusLabError, match="a stream of events has broken"):
            asyncio.run(asyncio.wait_for(listen(), 60))


@pytest.mark.slow
def test_a_short_one_measures_everything() -> None:
    load = Load(queued=20, per_s=10.0, listeners=3, seconds=1.0, mixed_s=3.0)
    said: list[str] = []
    result = bench_service(None, load, said.append)
    assert [row["case"] for row in result["rows"]] == list(GOALS_MS)
    assert result["events"]["complete_and_in_order"] == 3
    together = result["mixed"]
    assert set(together["p99_ms"]) == set(GOALS_MS)
    assert len(together["memory_mb"]) >= 5
    assert together["first_mb"] > 10.0
    assert any("all together for 3 s" in text for text in said)
