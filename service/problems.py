"""Errors as problem+json (RFC 9457), each with a code that stays."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from focus_lab.client.models import Problem
from focus_lab.errors import (
    DataError,
    FocusLabError,
    SpecError,
    StoreUnreachableError,
    TrackerError,
    UserError,
)
from focus_lab.lab.queue.changes import NoEntryError
from focus_lab.lab.queue.jobs import JobsUnreachableError
from focus_lab.lab.queue.queue import (
    ActiveError,
    ChangedError,
    KeyReusedError,
    NameTakenError,
    NotAllowedError,
    QuotaError,
)

MEDIA_TYPE = "application/problem+json"

_MOST_ERRORS, _LONGEST = 100, 2000

log = structlog.get_logger("focus_lab.service")


class ProblemError(Exception):
    """An answer that is no success.

    Args:
        status: of HTTP.
        code: stays the same over versions.
        detail: a sentence with the remedy.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, detail: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, headers


_KINDS: dict[type[FocusLabError], tuple[int, str]] = {
    NoEntryError: (404, "no-such-experiment"),
    NameTakenError: (409, "name-taken"),
    ActiveError: (409, "experiment-active"),
    NotAllowedError: (409, "not-allowed-now"),
    KeyReusedError: (409, "idempotency-key-reused"),
    ChangedError: (412, "changed-meanwhile"),
    QuotaError: (429, "quota"),
    SpecError: (400, "spec-invalid"),
    DataError: (400, "data-unusable"),
    StoreUnreachableError: (503, "store-unreachable"),
    TrackerError: (503, "tracker-unusable"),
    JobsUnreachableError: (503, "cluster-unreachable"),
    UserError: (400, "bad-request"),
}
"""Most special first."""

TITLES = {
    400: "The request is wrong",
    401: "Who are you?",
    403: "Not allowed",
    404: "There is no such thing",
    405: "Not that way",
    406: "Not in that form",
    409: "Not now",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Not in that form",
    422: "The request has another shape",
    429: "Too much",
    500: "Our mistake",
    503: "Not reachable now",
}


def describe(error: ProblemError | FocusLabError | RequestValidationError) -> Problem:
    """What an error is answered with, in whichever form."""
    if isinstance(error, ProblemError):
        return _made(error.status, error.code, error.detail)
    if isinstance(error, RequestValidationError):
        errors = [_shape(item) for item in error.errors()]
        return _made(422, "shape", errors[0], errors)
    for kind, (status, code) in _KINDS.items():
        if isinstance(error, kind):
            errors = list(error.problems) if isinstance(error, SpecError) else []
            many = f"the spec has {len(errors)} mistakes; see errors"
            return _made(status, code, many if len(errors) > 1 else str(error), errors)
    log.error("unexpected", error=str(error), kind=type(error).__name__)
    return _made(500, "internal", str(error))


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[str] | None = None,
    request_id: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """The answer of an error."""
    # Sentences quote what was sent, which may be half a character.
    detail = _whole(detail)
    return sent(_made(status, code, detail, errors), request_id, headers)


def _made(status: int, code: str, detail: str, errors: list[str] | None = None) -> Problem:
    return Problem(
        type=f"urn:focus-lab:problem:{code}",
        title=TITLES.get(status, "It did not work"),
        status=status,
        detail=detail[:_LONGEST],
        code=code,
        errors=_some(errors or []),
    )


def unexpected(error: Exception, path: str, request_id: str | None) -> Problem:
    """What an error that is our mistake is answered with; its insides are for the log alone."""
    log.exception("unexpected", exc_info=error, path=path)
    detail = f"something unexpected happened; the log of the service has it as {request_id}"
    return _made(500, "internal", detail)


def sent(
    found: Problem, request_id: str | None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as problem+json."""
    extra = {"Retry-After": "5"} if found.status in (429, 503) else {}
    return JSONResponse(
        found.model_dump(mode="json") | {"request_id": request_id},
        found.status,
        headers=extra | (headers or {}),
        media_type=MEDIA_TYPE,
    )


def _some(errors: list[str]) -> list[str]:
    """As many mistakes as a person reads: what is sent must not grow with a hostile body."""
    shown = [_whole(error)[:_LONGEST] for error in errors[:_MOST_ERRORS]]
    if left := len(errors) - len(shown):
        shown.append(f"and {left} more mistakes; mend these first")
    return shown


def _whole(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the errors that a route may answer with."""
    return {
        status: {
            "description": TITLES[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Turn every error of an app into a problem."""

    @app.exception_handler(ProblemError)
    async def ours(request: Request, error: ProblemError) -> JSONResponse:
        return _answer(request, describe(error), error.headers)

    @app.exception_handler(FocusLabError)
    async def lab(request: Request, error: FocusLabError) -> JSONResponse:
        return _answer(request, describe(error))

    @app.exception_handler(RequestValidationError)
    async def shape(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, describe(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "no-such-page", 405: "method-not-allowed", 413: "too-large"}.get(
            error.status_code, f"http-{error.status_code}"
        )
        detail = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
        headers = dict(error.headers or {})
        return problem(error.status_code, code, detail, request_id=_id(request), headers=headers)


def _answer(
    request: Request, found: Problem, headers: dict[str, str] | None = None
) -> JSONResponse:
    return sent(found, _id(request), headers)


def _shape(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"])
    got = str(item.get("input"))[:60]
    return f"{place}: {item['msg'][:1].lower()}{item['msg'][1:]}, got {got!r}"


def _id(request: Request) -> str | None:
    found: str | None = request.scope.get("focus_lab.request_id")
    return found
