"""The service under load, on loopback: submits, lists, details, cancels, streams, memory.

The server is a process of its own with the real store, queue and interface, and asks for tokens;
drivers are played in memory. Requests come at a fixed pace, whatever the answers take (an open
loop): a slow answer is not hidden by the pause that it causes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from focus_lab.errors import FocusLabError
from focus_lab.lab.queue.batch import put_all
from focus_lab.lab.queue.policy import Policy, Quota, Quotas
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action
from focus_lab.lab.queue.submission import Submission, Submitter
from focus_lab.lab.store import Store
from focus_lab.lab.tokens import Scope, Tokens
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

_SPEC: dict[str, Any] = {
    "name": "load",
    "data": {"kind": "shapes"},
    "sweep": {
        "axes": {"model.token_selection.keep_ratio": [0.1, 0.2, 0.3, 0.5, 1.0]},
        "seeds": [0],
    },
}
_POLICY = Policy(quotas=Quotas(default_user=Quota()))
GOALS_MS = {"list": 50.0, "detail": 50.0, "submit": 100.0, "cancel": 1000.0}
"""Of the 99th percentile."""
_WARM_S = 2.0
_TOGETHER = 50
"""Experiments that are queued in one transaction before the load begins."""

_SERVER = """
import sys
from service.bench import host
host(sys.argv[1], int(sys.argv[2]), sys.argv[3])
"""


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


def bench_service(store: str | None, load: Load, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        store: URL of an empty database; None for SQLite in a temporary folder.
        load: what to bear.
        progress: told what is done now.

    Returns:
        `rows` with `case`, `n`, `p50_ms`, `p95_ms`, `p99_ms`, `goal_ms` and `server_cpu_ms` (a
        request's share of the server's processor time); `events`; `memory_mb`.
    """
    with tempfile.TemporaryDirectory(prefix="focus-lab-bench-") as folder:
        url = store or f"sqlite:///{Path(folder) / 'lab.db'}"
        opened = Store(url)
        queue = Queue(opened, _POLICY)
        progress(f"queueing {load.queued} experiments …")
        begun = time.perf_counter()
        ids = _fill(queue, Path(folder), load.queued)
        token = Tokens(opened.database).create("bench", Scope.ADMIN, days=1)
        filled = time.perf_counter() - begun
        with serving(url, folder) as (base, pid):
            server = _Server(base, pid, {"authorization": f"Bearer {token}"})
            rows, events, memory = asyncio.run(_bear(server, load, queue, ids, progress))
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
        "rows": rows,
        "events": events,
        "memory_mb": memory,
    }


def host(url: str, port: int, folder: str) -> None:
    """The server's process: everything real but the drivers."""
    import uvicorn

    from focus_lab.lab.lease import new_owner
    from focus_lab.lab.log_lines import configure_logs
    from focus_lab.lab.queue.dispatcher import Dispatcher
    from focus_lab.lab.queue.jobs import MemoryJobs
    from focus_lab.lab.queue.leadership import Leadership
    from focus_lab.lab.tracking import MemoryTracker
    from service.app import create_app
    from service.lookout import Lookout
    from service.serve import KEEP_ALIVE_S, open_queue
    from service.settings import Settings
    from service.state import State

    configure_logs()
    settings = Settings(
        home=Path(folder),
        store=url,
        rate_per_s=1e6,
        burst=10**6,
        max_streams=10_000,
        max_streams_per_user=10_000,
    )
    with open_queue(settings) as opened:
        queue = Queue(opened.store, _POLICY)
        jobs, owner = MemoryJobs(), new_owner()
        dispatcher = Dispatcher(queue, jobs, Leadership(opened.store.database, owner), owner)
        with contextlib.closing(Lookout(url, lambda: _POLICY)) as look:
            app = create_app(State(settings, queue, jobs, MemoryTracker, look), dispatcher)
            uvicorn.run(
                app, host="127.0.0.1", port=port, log_config=None, access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )  # fmt: skip


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
    spec = ExperimentSpec.model_validate(_SPEC | {"name": f"fill-{number}"})
    return Submission(spec, plan(spec), folder / spec.name, Submitter(f"user-{number % 20}"))


@contextlib.contextmanager
def serving(url: str, folder: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; gives its address and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = Path(folder) / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, url, str(port), folder], stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx2.HTTPError):
                    if httpx2.get(f"http://127.0.0.1:{port}/health/live").status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise FocusLabError(f"bench service: no server, got {log.read_text()[-500:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait(30)


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
) -> tuple[list[dict[str, Any]], dict[str, Any], list[float]]:
    limits = httpx2.Limits(max_connections=load.listeners + 100, max_keepalive_connections=100)
    rows = []
    # The streams need some that wait: no more than half are cancelled, and then again.
    some = itertools.cycle(ids[: len(ids) // 2] or ids)
    async with httpx2.AsyncClient(
        base_url=server.address, headers=server.headers, limits=limits, timeout=60.0
    ) as client:
        memory = [resident_mb(server.pid)]
        for case in GOALS_MS:
            pace = load.per_s if case == "submit" else min(load.per_s, 20.0)
            progress(f"{case}: {pace:g} a second for {load.seconds:g} s …")

            async def one(number: int, case: str = case) -> float:
                return await _timed(client, case, number, ids, some)

            # A server that has run for a while: connections, prepared statements, caches.
            await _paced(one, pace, _WARM_S)
            before = _cpu_s(server.pid)
            took = await _paced(one, pace, load.seconds)
            rows.append(_row(case, took, pace, _cpu_s(server.pid) - before))
            memory.append(resident_mb(server.pid))
        progress(f"{load.listeners} streams …")
        events = await _streams(client, queue, ids, load)
        memory.append(resident_mb(server.pid))
    return rows, events, memory


async def _timed(
    client: httpx2.AsyncClient, case: str, number: int, ids: Sequence[str], some: Iterator[str]
) -> float:
    begun = time.perf_counter()
    if case == "list":
        answer = await client.get("/experiments", params={"limit": 50, "state": "QUEUED"})
    elif case == "detail":
        answer = await client.get(f"/experiments/{ids[number * 7919 % len(ids)]}")
    elif case == "cancel":
        answer = await client.post(f"/experiments/{next(some)}/cancel")
    else:
        content = json.dumps(_SPEC | {"name": f"load-{number + 10}-{time.time_ns()}"})
        answer = await client.post(
            "/experiments", content=content, headers={"content-type": "application/json"}
        )
    if answer.status_code not in (200, 202):
        raise FocusLabError(f"bench service: {case} failed, got {answer.text[:300]}")
    return 1000 * (time.perf_counter() - begun)


async def _paced(one: Callable[[int], Any], per_s: float, seconds: float) -> list[float]:
    """Start requests at a pace, whatever they take; returns their milliseconds."""
    begun = time.perf_counter()
    tasks = []
    for number in range(int(per_s * seconds)):
        wait = begun + number / per_s - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number)))
    return list(await asyncio.gather(*tasks))


async def _streams(
    client: httpx2.AsyncClient, queue: Queue, ids: Sequence[str], load: Load
) -> dict[str, Any]:
    """Every listener must see every event, in order; with the delay from commit to arrival."""
    ready = asyncio.Semaphore(0)
    writes = max(10, int(10 * load.seconds))
    delays: list[float] = []

    async def listen() -> list[str]:
        seen: list[str] = []
        async with client.stream("GET", "/events", timeout=600.0) as answer:
            async for event_id, at in _events(answer, ready):
                seen.append(event_id)
                delays.append(1000 * (time.time() - at))
                if len(seen) == writes:
                    return seen
        return seen

    tasks = [asyncio.create_task(listen()) for _ in range(load.listeners)]
    for _ in range(load.listeners):
        await ready.acquire()
    await asyncio.sleep(1.0)

    def write(number: int) -> None:
        turn = (Action.PAUSE, Action.RESUME)[number % 2]
        queue.act(ids[-1 - (number // 2) % len(ids)], turn, "bench")

    begun = time.perf_counter()
    for number in range(writes):
        await asyncio.to_thread(write, number)
        wait = begun + (number + 1) / 10 - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
    found = await asyncio.wait_for(asyncio.gather(*tasks), 120)
    equal = sum(seen == found[0] for seen in found)
    return {
        "listeners": load.listeners,
        "events": writes,
        "complete_and_in_order": equal,
        "p50_ms": _percentile(delays, 50),
        "p99_ms": _percentile(delays, 99),
    }


async def _events(
    answer: httpx2.Response, ready: asyncio.Semaphore
) -> AsyncIterator[tuple[str, float]]:
    """(id, time of writing) of the events that this benchmark has written."""
    from datetime import datetime

    content: dict[str, Any] = {}
    event_id = ""
    first = True
    async for line in answer.aiter_lines():
        if first:
            first = False
            ready.release()
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            content = json.loads(line[6:])
        elif not line and content:
            if content["actor"] == "bench":
                yield event_id, datetime.fromisoformat(content["at"]).timestamp()
            content = {}


def _row(case: str, took: Sequence[float], pace: float, cpu_s: float) -> dict[str, Any]:
    return {
        "case": case,
        "n": len(took),
        "per_s": pace,
        "p50_ms": _percentile(took, 50),
        "p95_ms": _percentile(took, 95),
        "p99_ms": _percentile(took, 99),
        "goal_ms": GOALS_MS[case],
        "server_cpu_ms": 1000 * cpu_s / len(took),
    }


def _percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _cpu_s(pid: int) -> float:
    """Seconds of processor time that the server has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
