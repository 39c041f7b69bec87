"""The listeners of `bench service`, in a process of their own.

What they read is not to delay the requests that are measured meanwhile: at hundreds of listeners
their client has about as much to do as the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx2

from focus_lab.errors import FocusLabError
from service.bench_load import percentile

WRITER = "bench-writer"
"""Actor of the events that listeners are measured by."""
_LONGEST_S = 120.0
_ENDED = "bench service: a stream of events has broken; the traceback of the listeners is above"
_COMMAND = [sys.executable, "-c", "from service.bench_listeners import main; main()"]
_DATA = re.compile(rb"^data: (.*)$", re.MULTILINE)
_ID = re.compile(rb"^id: (.*)$", re.MULTILINE)


class Listeners:
    """Open event streams, read until the context ends.

    Args:
        address: of the server.
        headers: of the requests.
        count: how many.
    """

    def __init__(self, address: str, headers: dict[str, str], count: int) -> None:
        self._first = {"address": address, "headers": headers, "count": count}
        self.count = count

    async def __aenter__(self) -> Listeners:
        """All are open."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*_COMMAND, stdin=pipe, stdout=pipe)
        try:
            # Not as arguments: others on the machine can read those.
            await self._ask(self._first)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let go.

        Raises:
            FocusLabError: a stream has broken.
        """
        if await self._end() and kind is None:
            raise FocusLabError(_ENDED)

    async def seen(self, events: int) -> dict[str, Any]:
        """Wait until everybody has seen so many events of the writer, for two minutes at most.

        Returns:
            `complete_and_in_order`: how many have seen that many, all in the same order; `p50_ms`
            and `p99_ms` from the commit of an event to its arrival.
        """
        told: dict[str, Any] = await self._ask(events)
        return told

    async def _end(self) -> int:
        """End the process, which does so with its input; its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await self._process.wait()

    async def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        answer = await self._process.stdout.readline()
        if not answer:
            raise FocusLabError(_ENDED)
        return json.loads(answer)


@dataclass
class _Listener:
    """One open stream."""

    ids: list[str] = field(default_factory=list)
    """Of the writer's events."""
    delays_ms: list[float] = field(default_factory=list)

    async def listen(self, client: httpx2.AsyncClient, ready: asyncio.Semaphore) -> None:
        """Read until cancelled."""
        async with client.stream("GET", "/events") as answer:
            answer.raise_for_status()
            chunks = answer.aiter_raw()
            rest = await anext(chunks)
            ready.release()
            async for chunk in chunks:
                *frames, rest = (rest + chunk).split(b"\n\n")
                for frame in frames:
                    if WRITER.encode() in frame:
                        self._note(frame)

    def _note(self, frame: bytes) -> None:
        data, event_id = _DATA.search(frame), _ID.search(frame)
        assert data is not None
        assert event_id is not None
        at = datetime.fromisoformat(json.loads(data[1])["at"]).timestamp()
        self.ids.append(event_id[1].decode())
        self.delays_ms.append(1000 * (time.time() - at))


async def _listen(address: str, headers: dict[str, str], count: int) -> None:
    limits = httpx2.Limits(max_connections=None)
    listeners = [_Listener() for _ in range(count)]
    ready = asyncio.Semaphore(0)
    async with (
        httpx2.AsyncClient(
            base_url=address, headers=headers, limits=limits, timeout=600.0
        ) as client,
        # One stream that breaks ends the process: it would be waited for.
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(one.listen(client, ready)) for one in listeners]
        for _ in range(count):
            await ready.acquire()
        # Their streams have begun; another moment, and they hear what is new.
        await asyncio.sleep(1.0)
        _answer({"open": count})
        while question := await asyncio.to_thread(sys.stdin.readline):
            events = json.loads(question)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_S):
                    while any(len(one.ids) < events for one in listeners):
                        await asyncio.sleep(0.1)
            _answer(_summary(listeners, events))
        for task in tasks:
            task.cancel()


def _summary(listeners: list[_Listener], events: int) -> dict[str, Any]:
    first = listeners[0].ids
    delays = [delay for one in listeners for delay in one.delays_ms]
    return {
        "complete_and_in_order": sum(
            one.ids == first and len(one.ids) == events for one in listeners
        ),
        "p50_ms": percentile(delays, 50),
        "p99_ms": percentile(delays, 99),
    }


def _answer(content: object) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point of the process; it ends when its input does."""
    first = json.loads(sys.stdin.readline())
    asyncio.run(_listen(**first))
