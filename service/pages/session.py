"""Login and logout: a token is verified once by form, then kept by the browser as a cookie."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response

from service.credentials import COOKIE
from service.pages.site import PageRoute, Site, site_of
from service.state import State, state_of

router = APIRouter(route_class=PageRoute)

Lab = Annotated[State, Depends(state_of)]
Pages = Annotated[Site, Depends(site_of)]
_HOME = "/ui/"
_FORM = "application/x-www-form-urlencoded"
_WRONG = "This token is unknown, expired or revoked. Ask an administrator for another."


@router.get("/ui/login")
def form(
    request: Request,
    state: Lab,
    site: Pages,
    wanted: Annotated[str, Query(alias="next", max_length=2000)] = _HOME,
) -> Response:
    """The form; whoever is known already goes on to the page that they wanted."""
    cookie = request.cookies.get(COOKIE)
    if not state.settings.auth or (cookie and state.tokens.verify(cookie)):
        return RedirectResponse(_safe(wanted), 303)
    return site.page(request, "login.html.jinja", None, wanted=_safe(wanted), error=None)


@router.post("/ui/login")
async def login(request: Request, state: Lab, site: Pages) -> Response:
    """Verify the token, and let the browser keep it."""
    sent: dict[str, list[str]] = {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
        body = (await request.body()).decode("utf-8", "replace")
        # More fields than any form of ours has show no token either.
        with contextlib.suppress(ValueError):
            sent = parse_qs(body, max_num_fields=10)
    text = sent.get("token", [""])[0].strip()
    wanted = _safe(sent.get("next", [_HOME])[0])
    token = await run_in_threadpool(state.tokens.verify, text)
    if token is None:
        return site.page(request, "login.html.jinja", None, status=401, wanted=wanted, error=_WRONG)
    answer = RedirectResponse(wanted, 303)
    left = token.expires_at - datetime.now(UTC) if token.expires_at else None
    answer.set_cookie(
        COOKIE, text, max_age=int(left.total_seconds()) if left else None, path="/",
        secure=request.url.scheme == "https", httponly=True, samesite="strict",
    )  # fmt: skip
    return answer


@router.post("/ui/logout")
async def logout(request: Request) -> Response:
    """Let the browser forget the token."""
    answer = RedirectResponse("/ui/login", 303)
    answer.delete_cookie(
        COOKIE, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return answer


def _safe(wanted: str) -> str:
    """A page of ours, whatever address a stranger has put there."""
    return wanted if re.fullmatch(r"/ui/[\w./?&=%+,~-]*", wanted, re.ASCII) else _HOME
