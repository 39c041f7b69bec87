"""The service under load, on loopback: submits, lists, details, cancels, streams, memory.

The server is a process of its own with the real store, queue and interface, and asks for tokens;
drivers are played in memory. Every kind of request first alone, then the streams, and in the end
everything together: by then the server has done all that it ever does, and its memory should stay.
"""

from __future__ import annotations

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from focus_lab.lab.queue.batch import put_all
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.submission import Submission, Submitter
from focus_lab.lab.store import Store
from focus_lab.lab.tokens import Scope, Tokens
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from service.bench_listeners import WRITER, Listeners
from service.bench_load import SPEC, Requests, mixed, paced, percentile
from service.bench_server import POLICY, cpu_s, resident_mb, serving

GOALS_MS = {"list": 50.0, "detail": 50.0, "submit": 100.0, "cancel": 1000.0}
"""Of the 99th percentile."""
_WARM_S = 2.0
_TOGETHER = 50
"""Experiments that are queued in one transaction before the load begins."""


@dataclass(frozen=True)
class Load:
    """What the service has to bear."""

    queued: int
    """Experiments that wait."""
    per_s: float
    """Submissions a second."""
    listeners: int
    """Open streams."""
    seconds: float
    """For how long each kind of request lasts."""
    mixed_s: float
    """For how long all of them together."""


def bench_service(store: str | None, load: Load, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        store: URL of an empty database; None for SQLite in a temporary folder.
        load: what to bear.
        progress: told what is done now.

    Returns:
        `rows` with `case`, `n`, `p50_ms`, `p95_ms`, `p99_ms`, `goal_ms` and `server_cpu_ms` (a
        request's share of the server's processor time); `events`; `mixed`, with the server's memory
        while all goes on together; `memory_mb` before, between and after the parts.
    """
    with tempfile.TemporaryDirectory(prefix="focus-lab-bench-") as folder:
        url = store or f"sqlite:///{Path(folder) / 'lab.db'}"
        opened = Store(url)
        queue = Queue(opened, POLICY)
        progress(f"queueing {load.queued} experiments …")
        begun = time.perf_counter()
        ids = _fill(queue, Path(folder), load.queued)
        token = Tokens(opened.database).create("bench", Scope.ADMIN, days=1)
        filled = time.perf_counter() - begun
        with serving(url, folder) as (base, pid):
            server = _Server(base, pid, {"authorization": f"Bearer {token}"})
            measured = asyncio.run(_bear(server, load, queue, ids, progress))
        shown = opened.url.split(":")[0]
        opened.close()
    return {
        "bench": "service",
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "database": shown,
        "versions": {"python": platform.python_version()},
        "queued": load.queued,
        "fill_per_s": load.queued / filled if filled else None,
    } | measured


def _fill(queue: Queue, folder: Path, count: int) -> list[str]:
    ids = []
    for first in range(0, count, _TOGETHER):
        numbers = range(first, min(first + _TOGETHER, count))
        for outcome in put_all(queue, [_submission(folder, number) for number in numbers]):
            if isinstance(outcome, Exception):
                raise outcome
            ids.append(outcome[0].id)
    return ids


def _submission(folder: Path, number: int) -> Submission:
    spec = ExperimentSpec.model_validate(SPEC | {"name": f"fill-{number}"})
    return Submission(spec, plan(spec), folder / spec.name, Submitter(f"user-{number % 20}"))


@dataclass(frozen=True)
class _Server:
    address: str
    pid: int
    headers: dict[str, str]


async def _bear(
    server: _Server,
    load: Load,
    queue: Queue,
    ids: Sequence[str],
    progress: Callable[[str], None],
) -> dict[str, Any]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx2.AsyncClient(
        base_url=server.address, headers=server.headers, limits=limits, timeout=60.0
    ) as client:
        requests = Requests(client, ids)
        memory = [resident_mb(server.pid)]
        rows = []
        for case in GOALS_MS:
            pace = load.per_s if case == "submit" else min(load.per_s, 20.0)
            progress(f"{case}: {pace:g} a second for {load.seconds:g} s …")
            rows.append(await _row(case, getattr(requests, case), pace, load.seconds, server.pid))
            memory.append(resident_mb(server.pid))
        progress(f"{load.listeners} streams …")
        async with Listeners(server.address, server.headers, load.listeners) as listeners:
            events = await _streams(listeners, queue, ids, max(10, int(10 * load.seconds)))
            memory.append(resident_mb(server.pid))
            together = await mixed(requests, server.pid, load.mixed_s, progress)
        memory.append(resident_mb(server.pid))
    return {"rows": rows, "events": events, "mixed": together, "memory_mb": memory}


async def _row(
    case: str, one: Callable[[], Awaitable[float]], pace: float, seconds: float, pid: int
) -> dict[str, Any]:
    # A server that has run for a while: connections, prepared statements, caches.
    await paced(one, pace, _WARM_S)
    before = cpu_s(pid)
    took = await paced(one, pace, seconds)
    return {
        "case": case,
        "n": len(took),
        "per_s": pace,
        "p50_ms": percentile(took, 50),
        "p95_ms": percentile(took, 95),
        "p99_ms": percentile(took, 99),
        "goal_ms": GOALS_MS[case],
        "server_cpu_ms": 1000 * (cpu_s(pid) - before) / len(took),
    }


async def _streams(
    listeners: Listeners, queue: Queue, ids: Sequence[str], writes: int
) -> dict[str, Any]:
    """Every listener must see every event, in order; with the delay from commit to arrival."""

    def write(number: int) -> None:
        # Allowed in whatever state an experiment is by now.
        queue.set_priority(ids[-1 - (number // 2) % len(ids)], -1 - number % 2, WRITER)

    begun = time.perf_counter()
    for number in range(writes):
        await asyncio.to_thread(write, number)
        wait = begun + (number + 1) / 10 - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
    told = await listeners.seen(writes)
    return {"listeners": listeners.count, "events": writes} | told
