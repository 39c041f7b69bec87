"""A frame: an event as it is sent, written once for all who listen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fastapi.sse import format_sse_event

from focus_lab.client import models
from focus_lab.lab.queue.events import Event


@dataclass(frozen=True)
class Frame:
    """An event for every open stream."""

    event: Event

    @cached_property
    def sent(self) -> bytes:
        """The server-sent event, by which the client finds its place again."""
        told = models.Event(
            experiment_id=self.event.experiment_id,
            at=self.event.at,
            kind=self.event.kind,
            actor=self.event.actor,
            data=self.event.data,
        )
        return format_sse_event(
            data_str=told.model_dump_json(), event=told.kind, id=str(self.event.cursor)
        )
