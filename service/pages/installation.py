"""The dashboard's place in the app."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response

from service.pages import compare, experiment, queue, session, submission, system
from service.pages.site import PageRoute, Site, site_of
from service.problems import ProblemError

router = APIRouter(route_class=PageRoute)


def install(app: FastAPI) -> None:
    """Add the pages to an app."""
    app.state.focus_lab_site = Site()
    for module in (queue, experiment, compare, submission, system, session):
        app.include_router(module.router, include_in_schema=False)
    # Last: it takes every address that is left.
    app.include_router(router, include_in_schema=False)


@router.get("/ui/static/{mark}/{name}")
def static(mark: str, name: str, site: Annotated[Site, Depends(site_of)]) -> Response:
    """Styles, scripts, the mark: for everybody, the login needs them."""
    answer = site.assets.answer(mark, name)
    if answer is None:
        raise ProblemError(404, "no-such-file", f"static: has no such file, got {name[:60]!r}")
    return answer


@router.get("/ui/{rest:path}")
def unknown(rest: str, request: Request) -> Response:
    """No page."""
    raise ProblemError(
        404, "no-such-page", f"/ui/{rest[:80]}: there is no such page; begin at the queue"
    )
