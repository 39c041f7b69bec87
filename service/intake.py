"""Intake: submissions that arrive while others are written wait, and are then written together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from focus_lab.lab.queue.batch import Outcome, put_all
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.submission import Submission

T = TypeVar("T")
_MOST = 50
"""In one transaction: the first of them waits for the last."""
_READERS = 2
"""Specs that are read at a time: Python's own work, which more threads would only make longer."""


class Intake:
    """Hands submissions to the queue, one transaction after the other.

    Args:
        queue: takes them.
    """

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[tuple[Submission, Callable[[Entry, bool], Any], Any]] = []
        self._writer: asyncio.Task[None] | None = None
        self._readers, self._one = CapacityLimiter(_READERS), CapacityLimiter(1)

    async def put(self, read: Callable[[], Submission], finish: Callable[[Entry, bool], T]) -> T:
        """Queue an experiment.

        Args:
            read: makes the submission, in a thread.
            finish: makes the answer from the experiment, and whether this has queued it; also
                in a thread.

        Raises:
            FocusLabError: what `read` raises, or why the queue refuses it.
        """
        submission = await to_thread.run_sync(read, limiter=self._readers)
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((submission, finish, answer))
        if self._writer is None:
            # It is no part of this request, which may be broken off while others wait.
            self._writer = asyncio.create_task(self._write())
        return await answer

    async def _write(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                parts = [(submission, finish) for submission, finish, _ in batch]
                found = await to_thread.run_sync(self._put_all, parts, limiter=self._one)
                for (_, _, answer), outcome in zip(batch, found, strict=True):
                    if answer.done():
                        continue  # nobody waits for it any more
                    if isinstance(outcome, Exception):
                        answer.set_exception(outcome)
                    else:
                        answer.set_result(outcome)
        finally:
            self._writer = None

    def _put_all(self, parts: list[tuple[Submission, Callable[[Entry, bool], Any]]]) -> list[Any]:
        """An answer or an error for each, whatever happens."""
        outcomes = put_all(self._queue, [submission for submission, _ in parts])
        return [
            _finished(outcome, finish) for outcome, (_, finish) in zip(outcomes, parts, strict=True)
        ]


def _finished(outcome: Outcome, finish: Callable[[Entry, bool], Any]) -> Any:
    if isinstance(outcome, Exception):
        return outcome
    try:
        return finish(*outcome)
    except Exception as error:
        return error
