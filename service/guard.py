"""What stands before every request: its id, its size, its rate, its host, and safe headers."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.credentials import shown_token, verdict
from service.problems import problem, sent, unexpected

log = structlog.get_logger("focus_lab.service")

# Pages load only what this service serves; nobody frames them.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Reports carry their own styles, pictures and a little script, and load nothing.
REPORT_CSP = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; frame-ancestors 'self'; sandbox allow-scripts"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": _CSP.encode(),
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
}
_SAFE = ("GET", "HEAD", "OPTIONS")


class Bucket:
    """Tokens of a rate: `burst` at once, `rate` a second in the long run, for each name.

    Args:
        rate: a second.
        burst: at once.
        clock: seconds.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> bool:
        """Whether `name` may have one more now."""
        now = self._clock()
        if len(self._levels) > 10_000:
            # Whoever has been away for long is full again, and need not be remembered.
            full = self._burst / self._rate
            self._levels = {k: v for k, v in self._levels.items() if now - v[1] < full}
        level, at = self._levels.get(name, (float(self._burst), now))
        level = min(float(self._burst), level + (now - at) * self._rate)
        allowed = level >= 1
        self._levels[name] = (level - 1 if allowed else level, now)
        return allowed


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        max_body: largest body, in bytes.
        rate: requests a second of one token, or of one address as far as it shows no token that
            is known to be valid.
        burst: requests at once.
        hosts: names by which the service may be reached; empty allows any.
        registry: of metrics.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body: int,
        rate: float,
        burst: int,
        hosts: frozenset[str],
        registry: CollectorRegistry,
    ) -> None:
        self._app, self._max_body, self._hosts = app, max_body, hosts
        # One address may be a proxy's.
        self._bucket, self._by_address = Bucket(rate, burst), Bucket(10 * rate, 10 * burst)
        # Tokens that are valid, by their marks; whoever makes up others is rated by the address.
        self._valid: set[bytes] = set()
        self._requests = Counter(
            "focus_lab_requests", "Requests by method and status.", ["method", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "focus_lab_request_seconds", "Seconds until the first byte of an answer.", ["method"],
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.-]{8,64}", given) else secrets.token_hex(8)
        scope["focus_lab.request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        begun, method = time.perf_counter(), scope["method"]
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._learn(scope)
                self._requests.labels(_known(method), str(status)).inc()
                self._seconds.labels(_known(method)).observe(time.perf_counter() - begun)
                there = {name.lower() for name, _ in message.get("headers", [])}
                extra = [(k, v) for k, v in _HEADERS.items() if k not in there]
                extra.append((b"x-request-id", request_id.encode()))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        refusal = self._refusal(scope, headers, request_id)
        if refusal is not None:
            await refusal(scope, receive, answer)
        else:
            await self._bounded(scope, receive, answer, request_id)
        # As the path names it, by name or id; whoever has queued one has said its id.
        named = {k: v for k, v in scope.get("path_params", {}).items() if k == "experiment"}
        log.info(
            "request", method=method, path=scope["path"], status=status,
            ms=round(1000 * (time.perf_counter() - begun), 1), **named,
        )  # fmt: skip

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes], request_id: str) -> Any:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if self._hosts and name not in self._hosts:
            # A page of another site that made its name point here would carry its own name.
            return problem(
                400, "unknown-host",
                f"Host: is none of this service's names, got {host[:80]!r}; add it to "
                "FOCUS_LAB_ALLOWED_HOSTS",
                request_id=request_id,
            )  # fmt: skip
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        foreign = origin and origin.partition("://")[2] != host
        if foreign and scope["method"] not in _SAFE:
            return problem(
                403, "foreign-origin",
                f"Origin: pages of other sites may change nothing here, got {origin[:80]!r}",
                request_id=request_id,
            )  # fmt: skip
        client = scope.get("client")
        address = client[0] if client else "unknown"
        if scope["path"].startswith("/health/"):
            return None
        mark = _mark(scope)
        key = mark.hex() if mark in self._valid else address
        if not (self._by_address.take(address) and self._bucket.take(key)):
            return problem(
                429, "rate", "too many requests at once; try again in a second",
                request_id=request_id, headers={"Retry-After": "1"},
            )  # fmt: skip
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body:
            return self._too_large(request_id)
        return None

    def _learn(self, scope: Scope) -> None:
        """Remember what was found out about the token of a request that is answered now."""
        found = verdict(scope)
        if found is not None:
            (self._valid.add if found else self._valid.discard)(_mark(scope))

    def _too_large(self, request_id: str) -> Any:
        return problem(
            413, "too-large", f"the body is too large; {self._max_body} bytes are allowed",
            request_id=request_id, headers={"Connection": "close"},
        )  # fmt: skip

    async def _bounded(
        self,
        scope: Scope,
        receive: Receive,
        send: Callable[[Message], Awaitable[None]],
        request_id: str,
    ) -> None:
        """Count a body that did not say how long it is."""
        size = 0
        started = False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self._max_body:
                    raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLargeError:
            if not started:
                await self._too_large(request_id)(scope, receive, send)
        except Exception as error:
            # Here, so that this answer has the headers of all others.
            found = unexpected(error, scope["path"], request_id)
            if started:
                raise
            await sent(found, request_id)(scope, receive, send)


class _TooLargeError(BaseException):
    """Not an Exception: whoever reads the body must not take it for its own."""


def _mark(scope: Scope) -> bytes:
    # Not the token itself: this is kept for a while.
    return hashlib.sha256((shown_token(scope) or "").encode()).digest()


def _known(method: str) -> str:
    # A metric's labels are few, whatever strangers send.
    return method if method in (*_SAFE, "POST", "PATCH", "PUT", "DELETE") else "other"
