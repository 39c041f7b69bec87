"""Logs of an experiment: the driver's, and each worker's of each trial; whole, or as they grow."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from focus_lab.client import models
from focus_lab.lab.driver import trial_folder
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.jobs import JobsUnreachableError
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.store import Experiment
from focus_lab.lab.trial_log import LOGS
from service.auth import Reader, StillValid
from service.driver_logs import FRESH_S
from service.files import files_below
from service.problems import ProblemError, declared
from service.routes.experiments import Id
from service.state import State, state_of

router = APIRouter(tags=["contents"], responses=declared(401, 403, 404, 422, 429, 503))

Lab = Annotated[State, Depends(state_of)]
T = TypeVar("T")

_TAIL = 1_000_000
"""Bytes of a log that are sent at most, its end."""


@router.get("/experiments/{experiment}/logs")
def logs(experiment: Id, state: Lab, _: Reader) -> models.LogList:
    """Which logs there are."""
    stored = _stored(state, state.queue.entry(experiment))
    items = [models.LogFile(trial=None, rank=None, size=0)]
    items += [
        models.LogFile(trial=trial, rank=rank, size=size)
        for trial, rank, _, size in _logs(state, stored)
    ]
    return models.LogList(items=items)


Follow = Annotated[bool, Query(description="Send what comes until the end.")]


# Asynchronous, so that all are counted by one thread; left when the stream has ended.
async def _room(state: Lab, principal: Reader, follow: Follow = False) -> AsyncIterator[None]:
    with state.log_streams.place(principal.user) if follow else contextlib.nullcontext():
        yield


@router.get(
    "/experiments/{experiment}/log",
    response_class=PlainTextResponse,
    responses={200: {"description": "The log", "content": {"text/plain": {}}}},
    dependencies=[Depends(_room)],
)
async def log(
    experiment: Id,
    state: Lab,
    _: Reader,
    is_valid: StillValid,
    trial: Annotated[
        str | None, Query(max_length=2000, description="Name of a trial; none: the driver's log.")
    ] = None,
    rank: Annotated[int, Query(ge=0, le=100_000, description="Worker of the trial.")] = 0,
    follow: Follow = False,
) -> Response:
    """The end of a log, up to a million bytes; with follow what comes later, too."""
    entry = await _read(state, state.queue.entry, experiment)
    stored = await _read(state, _stored, state, entry)
    if trial is None:
        if follow:
            return _streamed(_followed(_follow_driver(state, entry), is_valid))
        parts = await _read(state, _driver_log, state, entry)
        return PlainTextResponse("\n".join(parts)[-_TAIL:])
    known = await _read(state, lambda: list(_logs(state, stored)))
    file = next((f for name, number, f, _ in known if (name, number) == (trial, rank)), None)
    if file is None:
        raise ProblemError(
            404, "no-such-log",
            f"experiment {stored.name}: trial {trial[:80]!r} has no log of rank {rank}; see "
            "/logs for those that there are",
        )  # fmt: skip
    if follow:
        return _streamed(_followed(_follow_file(state, entry, file), is_valid))
    return PlainTextResponse(await _read(state, _tail, file))


def _stored(state: State, entry: Entry) -> Experiment:
    return state.queue.store.experiment(entry.id)


def _logs(state: State, stored: Experiment) -> Iterator[tuple[str, int, FilePath, int]]:
    """Trial, rank, file and bytes of each."""
    for trial in state.queue.store.trials(stored.id):
        for file, size in files_below(trial_folder(stored, trial) / LOGS):
            if match := re.fullmatch(r"rank-([0-9]+)\.log", file.name):
                yield trial.name, int(match[1]), file, size


def _tail(file: FilePath) -> str:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL))
        return opened.read().decode("utf-8", "replace")


def _driver_log(state: State, entry: Entry, first: int = 1, fresh_s: float = 0.0) -> list[str]:
    # Of attempts before the newest only the end matters: why they ended.
    parts = []
    for number in range(max(first, entry.attempt - 4), entry.attempt + 1):
        text = state.driver_logs.text(f"{entry.id}-{number}", fresh_s)
        parts.append(f"--- attempt {number}\n{text}")
    return parts


async def _read(state: State, function: Callable[..., T], *arguments: Any) -> T:
    # Threads of their own: a cluster that answers slowly keeps nothing but logs waiting.
    return await to_thread.run_sync(function, *arguments, limiter=state.log_threads)


def _streamed(text: AsyncIterator[str]) -> StreamingResponse:
    # A proxy would keep lines back until it has many.
    return StreamingResponse(text, media_type="text/plain", headers={"X-Accel-Buffering": "no"})


def _says_no_more(state: QueueState) -> bool:
    """Whether a log that is followed ends; one that waits, for the first time or again, goes on."""
    return state.is_terminal or state is QueueState.PAUSED


async def _followed(text: AsyncIterator[str], is_valid: StillValid) -> AsyncIterator[str]:
    """A stream that ends with its token."""
    async for part in text:
        if not await is_valid():
            return
        yield part


async def _follow_driver(state: State, entry: Entry) -> AsyncIterator[str]:
    # Attempts before the newest say no more: it alone is read again, while it has not ended.
    newest, ended, sent = 1, -1, 0
    while True:
        entry = await _read(state, state.queue.entry, entry.id)
        new = ""
        if entry.attempt > ended:
            # The last words must not be missed.
            fresh_s = FRESH_S if entry.state.is_admitted else 0.0
            with contextlib.suppress(JobsUnreachableError):
                parts = await _read(state, _driver_log, state, entry, newest, fresh_s)
                text = "\n".join(parts)
                # Of a log that only grows its length says what was sent. A cluster that was
                # started anew has a shorter one.
                new = text[sent:] if 0 < sent <= len(text) else text[-_TAIL:]
                newest, sent = max(1, entry.attempt), len(parts[-1]) if parts else 0
                if not entry.state.is_admitted:
                    ended = entry.attempt
        # Also where nothing is new, so that the token is looked at.
        yield new
        if _says_no_more(entry.state):
            return
        await asyncio.sleep(1.0)


async def _follow_file(state: State, entry: Entry, file: FilePath) -> AsyncIterator[str]:
    place = max(0, file.stat().st_size - _TAIL)
    # A character may be half written when it is read.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        ended = _says_no_more((await _read(state, state.queue.entry, entry.id)).state)

        def more(begin: int) -> bytes:
            with file.open("rb") as opened:
                opened.seek(begin)
                return opened.read(_TAIL)

        content = await _read(state, more, place)
        place += len(content)
        # Also where nothing is new, so that the token is looked at.
        yield decoder.decode(content)
        if content:
            continue
        if ended:
            return
        await asyncio.sleep(0.5)
