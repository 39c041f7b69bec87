"""The system's page: cluster, dispatcher, use, health."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from focus_lab.client import models
from focus_lab.lab.tokens import Scope
from service.auth import Reader
from service.pages.site import PageRoute, Site, site_of
from service.routes import system as api
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]
Health = Annotated[models.Health, Depends(api.health)]

_POLL_S = 5


@router.get("/ui/system")
def system(
    request: Request, state: Lab, site: Pages, principal: Reader, health: Health
) -> Response:
    """How the service is."""
    newest = state.events.newest()
    return site.page(
        request, "system.html.jinja", principal,
        system=api.system(state, principal),
        health=health,
        is_admin=principal.scope is Scope.ADMIN,
        streams=state.feed.listeners,
        poll=_POLL_S,
        after=str(newest),
    )  # fmt: skip
