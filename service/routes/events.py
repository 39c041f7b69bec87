"""Events as they happen: server-sent, in order, from any place on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from focus_lab.lab.queue.events import Cursor
from service import views
from service.auth import Reader, StillValid
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
    response_class=EventSourceResponse,
    responses=declared(404),
)
async def of_experiment(
    known: Annotated[str, Depends(_known)],
    place: Annotated[Cursor | None, Depends(_place)],
    state: Annotated[State, Depends(_room)],
    is_valid: StillValid,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to an experiment and its trials, from its beginning or a known event on."""
    async for event in _stream(state, place or Cursor(), known, is_valid):
        yield event


@router.get("/events", response_class=EventSourceResponse)
async def of_all(
    place: Annotated[Cursor | None, Depends(_place)],
    state: Annotated[State, Depends(_room)],
    is_valid: StillValid,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to all experiments, from now or a known event on."""
    async for event in _stream(state, place, None, is_valid):
        yield event


async def _stream(
    state: State,
    place: Cursor | None,
    experiment_id: str | None,
    is_valid: StillValid,
) -> AsyncIterator[ServerSentEvent]:
    # How soon to come back after a break; sent first, so that it is known in any case.
    yield ServerSentEvent(comment="focus_lab events", retry=_RETRY_MS)
    async for event in state.feed.follow(place, experiment_id):
        if not await is_valid():
            return
        yield ServerSentEvent(
            data=views.event(event).model_dump(mode="json"), event=event.kind, id=str(event.cursor)
        )
