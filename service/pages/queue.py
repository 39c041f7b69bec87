"""The queue's page: what runs, what waits and why, what has ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from focus_lab.client import models
from focus_lab.lab.queue.entry import Entry, Filters
from focus_lab.lab.queue.states import ADMITTED, TERMINAL, Action, QueueState
from focus_lab.lab.states import TrialState
from service import views
from service.auth import Principal, Reader
from service.pages.offers import offers
from service.pages.site import PageRoute, Site, site_of
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]

_PAGE = 50
_ENDED = 20
"""Of those that have ended, on the page of everything."""

_GROUPS: dict[str, tuple[QueueState, ...]] = {
    "running": tuple(state for state in QueueState if state in ADMITTED),
    "waiting": (QueueState.QUEUED,),
    "paused": (QueueState.PAUSED,),
    "ended": tuple(state for state in QueueState if state in TERMINAL),
    "succeeded": (QueueState.SUCCEEDED,),
    "failed": (QueueState.FAILED,),
    "cancelled": (QueueState.CANCELLED,),
}
"""States as people look for them."""


@dataclass(frozen=True)
class Row:
    """One experiment of a list."""

    experiment: models.Experiment
    trials: dict[TrialState, int]
    """State -> number."""
    may_cancel: bool
    may_move: bool
    """Whether its priority may be changed, and matters."""

    @property
    def done(self) -> int:
        """Trials that have succeeded."""
        return self.trials.get(TrialState.SUCCEEDED, 0)

    @property
    def failed(self) -> int:
        """Trials that have failed."""
        return self.trials.get(TrialState.FAILED, 0)


@dataclass(frozen=True)
class Group:
    """Some rows under a heading."""

    title: str
    rows: list[Row]
    more: str | None = None
    """Where the rest is."""


@router.get("/ui/")
def queue(
    request: Request,
    state: Lab,
    site: Pages,
    principal: Reader,
    group: Annotated[str, Query(max_length=20)] = "",
    user: Annotated[str, Query(max_length=64)] = "",
    project: Annotated[str, Query(max_length=64)] = "",
    name: Annotated[str, Query(max_length=63)] = "",
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """Everything at a glance, or what the filters leave, page by page."""
    newest = state.events.newest()
    asked = {"group": group, "user": user, "project": project, "name": name}
    if any(asked.values()) or cursor:
        filters = Filters(_GROUPS.get(group, ()), user or None, project or None, name or None)
        page = state.queue.page(filters, _PAGE, cursor)
        following = None
        if page.next_cursor:
            following = _address(asked | {"cursor": page.next_cursor})
        title = group.capitalize() if group in _GROUPS else "All"
        groups = [Group(title, _rows(state, principal, page.entries), following)]
    else:
        groups = _everything(state, principal)
    counts = state.queue.counts()
    return site.page(
        request, "queue.html.jinja", principal,
        groups=groups, asked=asked, overview=not (any(asked.values()) or cursor),
        first=_address(asked) if cursor else None,
        mine=_address({"user": principal.user}),
        tabs=[
            (label, _address(asked | {"group": label}), sum(counts.get(s, 0) for s in states))
            for label, states in _GROUPS.items()
        ],
        everything=_address(asked | {"group": ""}),
        total=sum(counts.values()),
        after=str(newest),
    )  # fmt: skip


def _everything(state: State, principal: Principal) -> list[Group]:
    def newest(states: Iterable[QueueState], limit: int) -> tuple[list[Entry], bool]:
        page = state.queue.page(Filters(tuple(states)), limit)
        return list(page.entries), page.next_cursor is not None

    running, more_running = newest(_GROUPS["running"], _PAGE)
    waiting, more_waiting = _waiting(state)
    paused, more_paused = newest(_GROUPS["paused"], _PAGE)
    ended, more_ended = newest(_GROUPS["ended"], _ENDED)
    return [
        Group(title, _rows(state, principal, entries), address if more else None)
        for title, entries, more, address in (
            ("Running", running, more_running, _address({"group": "running"})),
            ("Waiting", waiting, more_waiting, _address({"group": "waiting"})),
            ("Paused", paused, more_paused, _address({"group": "paused"})),
            ("Ended", ended, more_ended, _address({"group": "ended"})),
        )
        if entries
    ]


def _waiting(state: State) -> tuple[list[Entry], bool]:
    """The front of the queue in its order; then those that nobody has looked at yet."""
    places = state.board.places()
    front = list(itertools.islice(places, _PAGE))
    now = state.queue.entries(front)
    page = state.queue.page(Filters((QueueState.QUEUED,)), _PAGE)
    found = [now[one] for one in front if one in now and now[one].state is QueueState.QUEUED]
    found += [entry for entry in reversed(page.entries) if entry.id not in places]
    return found[:_PAGE], len(places) > _PAGE or page.next_cursor is not None


def _rows(state: State, principal: Principal, entries: Iterable[Entry]) -> list[Row]:
    entries = list(entries)
    counts = state.queue.store.trial_counts([entry.id for entry in entries])
    return [
        Row(
            views.experiment(state, entry),
            counts.get(entry.id, {}),
            any(offer.action is Action.CANCEL for offer in offers(principal, entry)),
            not entry.state.is_terminal and principal.may_change(entry),
        )
        for entry in entries
    ]


def _address(asked: dict[str, str]) -> str:
    found = {key: value for key, value in asked.items() if value}
    return f"/ui/?{urlencode(found)}" if found else "/ui/"
