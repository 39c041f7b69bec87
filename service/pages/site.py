"""The site: templates and assets, and how a page, an error or the way to the login is answered."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from focus_lab.client.models import Problem
from focus_lab.errors import FocusLabError
from focus_lab.lab.tokens import Scope
from service.auth import Principal
from service.pages.assets import Assets
from service.pages.history import Histories
from service.pages.moments import lasting, moment
from service.problems import ProblemError, describe, unexpected

_HEADERS = {
    "Cache-Control": "no-store",
    # Under the API's no-referrer, browsers send forms with `Origin: null`, which the guard refuses.
    "Referrer-Policy": "same-origin",
}


class Site:
    """What all pages share."""

    def __init__(self) -> None:
        self.assets = Assets()
        self.histories = Histories()
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Trials and cells keep the order of the plan.
        self._templates.policies["json.dumps_kwargs"] = {"sort_keys": False}
        self._templates.globals |= {
            "asset": self.assets.address,
            "moment": moment,
            "lasting": lasting,
        }

    def page(
        self,
        request: Request,
        template: str,
        visitor: Principal | None,
        *,
        status: int = 200,
        **content: Any,
    ) -> HTMLResponse:
        """A page.

        Args:
            request: what is answered.
            template: `NAME.html.jinja`.
            visitor: who looks; None on pages that everybody may see.
            status: of the answer.
            content: what the template shows.
        """
        auth = request.app.state.focus_lab.settings.auth
        common = {
            "visitor": visitor,
            "auth": auth,
            "may_submit": visitor is not None and visitor.scope.includes(Scope.SUBMIT),
            "path": request.url.path,
        }
        text = self._templates.get_template(template).render(common | content)
        return HTMLResponse(text, status, headers=_HEADERS)

    def problem(self, request: Request, found: Problem) -> HTMLResponse:
        """An error as a page."""
        return self.page(request, "problem.html.jinja", None, status=found.status, problem=found)


def site_of(request: Request) -> Site:
    """The site of the app that a request came to."""
    site: Site = request.app.state.focus_lab_site
    return site


class PageRoute(APIRoute):
    """A route for people: errors are pages, and who is not known is sent to the login."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's."""
        handler = super().get_route_handler()

        async def page(request: Request) -> Response:
            try:
                return await handler(request)
            except (ProblemError, FocusLabError, RequestValidationError) as error:
                found = describe(error)
                if found.status == 401:
                    return _to_login(request)
                return site_of(request).problem(request, found)
            except Exception as error:
                request_id = request.scope.get("focus_lab.request_id")
                found = unexpected(error, request.url.path, request_id)
                return site_of(request).problem(request, found)

        return page


def _to_login(request: Request) -> RedirectResponse:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/ui/login?next={quote(wanted, safe='')}", 303, headers=_HEADERS)
