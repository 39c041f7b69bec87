"""Where a request carries its token, and whether it was found to be valid."""

from __future__ import annotations

from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import HTTPConnection
from starlette.types import Scope

COOKIE = "focus_lab_token"
"""Browsers keep the token in it; scripts cannot read it, other sites' requests do not carry it."""

_VERDICT = "focus_lab.token_is_valid"


def shown_token(scope: Scope) -> str | None:
    """The token that a request shows, by whichever of the ways that `identify` takes."""
    request = HTTPConnection(scope)
    scheme, text = get_authorization_scheme_param(request.headers.get("authorization"))
    if scheme.lower() == "bearer" and text:
        return text
    return request.cookies.get(COOKIE) or None


def note_verdict(scope: Scope, is_valid: bool) -> None:
    """Keep with a request whether its token was found to be valid."""
    scope[_VERDICT] = is_valid


def verdict(scope: Scope) -> bool | None:
    """Whether the token was found to be valid; None where nobody has looked."""
    found: bool | None = scope.get(_VERDICT)
    return found
