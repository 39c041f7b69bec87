"""The load of `bench service`: requests at a pace, and the server's memory meanwhile.

Requests come at a fixed pace, whatever the answers take (an open loop): a slow answer is not hidden
by the pause that it causes.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from focus_lab.errors import FocusLabError
from service.bench_server import resident_mb

SPEC: dict[str, Any] = {
    "name": "load",
    "data": {"kind": "shapes"},
    "sweep": {
        "axes": {"model.token_selection.keep_ratio": [0.1, 0.2, 0.3, 0.5, 1.0]},
        "seeds": [0],
    },
}


@dataclass
class Requests:
    """Requests of every kind; each returns its milliseconds.

    Args:
        client: of the server.
        ids: of the experiments that wait.
    """

    client: httpx2.AsyncClient
    ids: Sequence[str]

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        # Listeners are measured by some that wait: no more than half are cancelled, then again.
        self._to_cancel = itertools.cycle(self.ids[: len(self.ids) // 2] or self.ids)

    async def list(self) -> float:
        """The first page of those that wait."""
        return (await self._timed("GET", "/experiments?limit=50&state=QUEUED"))[0]

    async def detail(self) -> float:
        """One of those that wait, another each time."""
        name = self.ids[next(self._numbers) * 7919 % len(self.ids)]
        return (await self._timed("GET", f"/experiments/{name}"))[0]

    async def submit(self) -> float:
        """A new experiment."""
        return (await self.submitted())[0]

    async def cancel(self) -> float:
        """The next of those that wait."""
        return await self.cancelled(next(self._to_cancel))

    async def submitted(self) -> tuple[float, str]:
        """Submit one; its id as well."""
        content = SPEC | {"name": f"load-{next(self._numbers)}-{time.time_ns()}"}
        took, answer = await self._timed("POST", "/experiments", json=content)
        return took, answer.json()["experiment"]["id"]

    async def cancelled(self, experiment_id: str) -> float:
        """Cancel a certain one."""
        return (await self._timed("POST", f"/experiments/{experiment_id}/cancel"))[0]

    async def _timed(self, method: str, path: str, **content: Any) -> tuple[float, httpx2.Response]:
        begun = time.perf_counter()
        answer = await self.client.request(method, path, **content)
        if answer.status_code not in (200, 202):
            raise FocusLabError(f"bench service: {method} {path} failed, got {answer.text[:300]}")
        return 1000 * (time.perf_counter() - begun), answer


async def paced(one: Callable[[], Awaitable[float]], per_s: float, seconds: float) -> list[float]:
    """Start requests at a pace, whatever they take.

    Returns:
        Milliseconds of each.
    """
    begun = time.perf_counter()
    tasks: list[asyncio.Future[float]] = []
    for number in range(max(1, int(per_s * seconds))):
        wait = begun + number / per_s - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(one()))
    return list(await asyncio.gather(*tasks))


async def mixed(
    requests: Requests, pid: int, seconds: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Everything at once, the queue as long as before; and the server's memory meanwhile.

    Returns:
        `seconds`; `p99_ms` by kind of request; `memory_mb`, sampled every `sample_s` seconds; its
        `first_mb` and `last_mb`, and `mb_per_min`: its slope in the second half.
    """
    sample_s = min(5.0, max(0.5, seconds / 24))
    took: dict[str, list[float]] = {}
    memory: list[float] = []

    async def turn() -> float:
        submitted, name = await requests.submitted()
        took["submit"].append(submitted)
        took["cancel"].append(await requests.cancelled(name))
        return 0.0

    async def watch() -> None:
        while True:
            memory.append(resident_mb(pid))
            await asyncio.sleep(sample_s)

    async def kind(name: str, one: Callable[[], Awaitable[float]], per_s: float) -> None:
        took[name] = await paced(one, per_s, seconds)

    progress(f"all together for {seconds:g} s …")
    took["submit"], took["cancel"] = [], []
    watching = asyncio.create_task(watch())
    await asyncio.gather(
        kind("list", requests.list, 5.0),
        kind("detail", requests.detail, 10.0),
        paced(turn, 5.0, seconds),
    )
    watching.cancel()
    return {
        "seconds": seconds,
        "p99_ms": {name: percentile(times, 99) for name, times in took.items()},
        "sample_s": sample_s,
        "memory_mb": memory,
        "first_mb": memory[0],
        "last_mb": memory[-1],
        "mb_per_min": 60 / sample_s * slope(memory[len(memory) // 2 :]),
    }


def slope(values: Sequence[float]) -> float:
    """By how much values rise from one to the next, by least squares; 0 of a single one."""
    if len(values) < 2:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
