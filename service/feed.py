"""The feed: new events, read once from the store and passed to every open stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import structlog

from focus_lab.errors import StoreError
from focus_lab.lab.queue.events import Cursor, EventLog
from service.frame import Frame

log = structlog.get_logger("focus_lab.service")

_PAUSE_S = 0.25
_BATCH = 500
_BEHIND = 2000
"""Events that a slow listener may be behind before it is let go; it comes back where it was."""
_QUIET_S = 15.0
_AT_ONCE = 20


@dataclass(eq=False)
class _Listener:
    experiment_id: str | None
    frames: asyncio.Queue[Frame | None] = field(default_factory=lambda: asyncio.Queue(_BEHIND))
    lost: bool = False

    def offer(self, frame: Frame) -> None:
        if self.lost or self.experiment_id not in (None, frame.event.experiment_id):
            return
        try:
            self.frames.put_nowait(frame)
        except asyncio.QueueFull:
            self.lost = True

    async def waiting(self) -> list[Frame]:
        """All that is there, as soon as anything is; nothing after a while of silence."""
        try:
            async with asyncio.timeout(_QUIET_S):
                found = [await self.frames.get()]
        except TimeoutError:
            return []
        while not self.frames.empty():
            found.append(self.frames.get_nowait())
        return [frame for frame in found if frame is not None]


class Feed:
    """Events as they are committed.

    Args:
        log: where they are read.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._listeners: set[_Listener] = set()
        self._cursor: Cursor | None = None
        self._closing = asyncio.Event()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def run(self) -> None:
        """Read until closed."""
        self._closing = asyncio.Event()
        while not self._closing.is_set():
            try:
                await self._read()
            except StoreError as error:
                # They are there when the store is back.
                log.warning("feed", error=str(error))
            except Exception as error:
                # One event that cannot be read must not end the streams of all.
                log.exception("feed", exc_info=error)
            try:
                await asyncio.wait_for(self._closing.wait(), _PAUSE_S)
            except TimeoutError:
                continue

    async def _read(self) -> None:
        while self._listeners and self._cursor is not None:
            events = await asyncio.to_thread(self._log.after, self._cursor, limit=_BATCH)
            await self._pass_on([Frame(event) for event in events])
            if events:
                self._cursor = events[-1].cursor
            if len(events) < _BATCH:
                return
        if not self._listeners:
            # What happens meanwhile is read from the store by whoever comes.
            self._cursor = None

    async def _pass_on(self, frames: Sequence[Frame]) -> None:
        # Who comes meanwhile reads these as past.
        for number, listener in enumerate(list(self._listeners)):
            for frame in frames:
                listener.offer(frame)
            if number % _AT_ONCE == _AT_ONCE - 1:
                # Hundreds of streams are written to in one go otherwise, and requests wait for all.
                await asyncio.sleep(0)

    async def close(self) -> None:
        """End every stream; clients come back by themselves."""
        self._closing.set()
        for listener in list(self._listeners):
            listener.lost = True
            # A full one is awake; it ends with its last event, and none before that is left out.
            with contextlib.suppress(asyncio.QueueFull):
                listener.frames.put_nowait(None)

    async def follow(
        self, after: Cursor | None, experiment_id: str | None = None
    ) -> AsyncGenerator[Sequence[Frame]]:
        """Events after a place, then new ones for as long as the listener keeps up.

        As many at a time as there are; none now and then while nothing happens, so that whoever
        sends them notices a listener that has gone.

        Args:
            after: the last event that is known; None for new ones only.
            experiment_id: of this experiment only.
        """
        # Who comes while the service ends is told what there was, and comes back for the rest.
        listener = _Listener(experiment_id, lost=self._closing.is_set())
        self._listeners.add(listener)
        try:
            newest = await asyncio.to_thread(self._log.newest)
            if self._cursor is None:
                # From here on new events reach the listener; what is older is read below.
                self._cursor = newest
            begin = seen = after or newest
            # The past first, page by page; what comes meanwhile waits in the listener.
            while True:
                page = await asyncio.to_thread(
                    self._log.after, seen, experiment_id=experiment_id, limit=_BATCH
                )
                if page:
                    seen = page[-1].cursor
                    yield [Frame(event) for event in page]
                if len(page) < _BATCH:
                    break
            if seen == begin:
                # A place beyond all that there is is one of a store before it was restored, from an
                # older copy or on another server: what comes now comes after it all the same.
                seen = min(begin, newest)
            while not (listener.lost and listener.frames.empty()):
                waiting = await listener.waiting()
                # In order, but for those that have been read as past.
                new = [frame for frame in waiting if frame.event.cursor > seen]
                if new:
                    seen = new[-1].event.cursor
                if new or not waiting:
                    yield new
        finally:
            self._listeners.discard(listener)
