"""Events as they happen: server-sent, in order, from any place on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.responses import Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from focus_lab.client import models
from focus_lab.errors import StoreError
from focus_lab.lab.queue.events import Cursor
from service.auth import Reader, StillValid
from service.frame import Frame
from service.problems import declared
from service.routes.experiments import Id
from service.state import State, state_of

router = APIRouter(tags=["events"], responses=declared(400, 401, 403, 422, 429, 503))

Lab = Annotated[State, Depends(state_of)]
LastEventId = Annotated[
    str | None,
    Header(
        max_length=40,
        description="The id of the last event that you know: those after it are sent. Without it, "
        "an experiment's stream begins at its beginning, the stream of all with what comes.",
    ),
]
After = Annotated[
    str | None, Query(max_length=40, description="As Last-Event-ID, for those who cannot send it.")
]
_RETRY_MS = 2000


class EventStream(StreamingResponse):
    """Frames as they are: FastAPI's own would write each again for every listener."""

    media_type = "text/event-stream"


_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events",
        "content": {
            EventStream.media_type: {
                "itemSchema": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "event": {"type": "string"},
                        "data": {
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": models.Event.model_json_schema(),
                        },
                        "retry": {"type": "integer", "minimum": 0},
                    },
                }
            }
        },
    }
}


# Checked by dependencies: once a stream has begun, no error can be answered any more.
def _place(last_event_id: LastEventId = None, after: After = None) -> Cursor | None:
    text = last_event_id or after
    return Cursor.parse(text) if text else None


# Asynchronous, so that all are counted by one thread; left when the stream has ended.
async def _room(state: Lab, principal: Reader) -> AsyncIterator[State]:
    with state.event_streams.place(principal.user):
        yield state


def _known(experiment: Id, state: Lab, _: Reader) -> str:
    return state.queue.entry(experiment).id


@router.get(
    "/experiments/{experiment}/events",
    response_class=Response,
    responses=_ANSWER | declared(404),
)
async def of_experiment(
    known: Annotated[str, Depends(_known)],
    place: Annotated[Cursor | None, Depends(_place)],
    state: Annotated[State, Depends(_room)],
    is_valid: StillValid,
) -> EventStream:
    """What happens to an experiment and its trials, from its beginning or a known event on."""
    return _stream(state.feed.follow(place or Cursor(), known), is_valid)


@router.get("/events", response_class=Response, responses=_ANSWER)
async def of_all(
    place: Annotated[Cursor | None, Depends(_place)],
    state: Annotated[State, Depends(_room)],
    is_valid: StillValid,
) -> EventStream:
    """What happens to all experiments, from now or a known event on."""
    return _stream(state.feed.follow(place), is_valid)


def _stream(frames: AsyncGenerator[Sequence[Frame]], is_valid: StillValid) -> EventStream:
    async def sent() -> AsyncIterator[bytes]:
        # How soon to come back after a break; sent first, so that it is known in any case.
        yield format_sse_event(comment="focus_lab events", retry=_RETRY_MS)
        # A store that is away ends the stream; the client comes back for what it has missed.
        with contextlib.suppress(StoreError):
            async with contextlib.aclosing(frames):
                async for several in frames:
                    if not await is_valid():
                        return
                    yield b"".join(frame.sent for frame in several) or KEEPALIVE_COMMENT

    # Neither kept by anybody on the way nor held back until there is more.
    return EventStream(sent(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
