"""Who a request comes from, and what it may do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from focus_lab.errors import StoreError
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.tokens import Scope
from service.credentials import COOKIE, note_verdict
from service.problems import ProblemError
from service.state import State, state_of

_bearer = HTTPBearer(auto_error=False, description="A token of `focus-lab token create`.")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="The same, of a browser.")
_ASK_AGAIN_S = 60.0


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    user: str
    project: str
    scope: Scope

    @property
    def submitter(self) -> Submitter:
        """As the queue sees it."""
        return Submitter(self.user, self.project)

    def may_change(self, entry: Entry) -> bool:
        """Whether an experiment is theirs to change, and their token allows it."""
        owns = entry.user == self.user or self.scope is Scope.ADMIN
        return owns and self.scope.includes(Scope.SUBMIT)

    def check_owns(self, entry: Entry) -> None:
        """See that an experiment is theirs to change.

        Raises:
            ProblemError: it is not.
        """
        if entry.user != self.user and self.scope is not Scope.ADMIN:
            raise ProblemError(
                403, "not-yours",
                f"experiment {entry.name}: belongs to {entry.user}, you are {self.user}; "
                "ask them, or use a token with scope admin",
            )  # fmt: skip

    def check_priority(self, priority: int, most: int) -> None:
        """See that a priority is theirs to give.

        Raises:
            ProblemError: it is above the policy's `most_priority`.
        """
        if priority > most and self.scope is not Scope.ADMIN:
            raise ProblemError(
                403, "too-urgent",
                f"priority: must be at most {most} here, got {priority}; ask an administrator",
            )  # fmt: skip


EVERYBODY = Principal("local", "default", Scope.ADMIN)
"""Where requests need no token."""


async def identify(
    request: Request,
    state: Annotated[State, Depends(state_of)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
    cookie: Annotated[str | None, Security(_cookie)] = None,
) -> Principal:
    """Who asks.

    Raises:
        ProblemError: it shows no valid token.
    """
    if not state.settings.auth:
        return EVERYBODY
    text = bearer.credentials if bearer else cookie
    token = state.door.recent(text) if text else None
    if text and token is None:
        token = await run_in_threadpool(state.door.verify, text)
    note_verdict(request.scope, token is not None)
    if token is None:
        raise ProblemError(
            401, "no-token" if not text else "bad-token",
            "Authorization: a valid token is needed, got "
            f"{'none' if not text else 'one that is unknown, expired or revoked'}; send "
            "`Authorization: Bearer …`, made by `focus-lab token create`",
            {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    structlog.contextvars.bind_contextvars(user=token.user)
    return Principal(token.user, token.project, token.scope)


async def still_valid(
    request: Request,
    state: Annotated[State, Depends(state_of)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
    cookie: Annotated[str | None, Security(_cookie)] = None,
) -> Callable[[], Awaitable[bool]]:
    """Whether the request's token is valid, looked up once a minute: streams outlast tokens."""
    asked = time.monotonic()

    async def ask() -> bool:
        nonlocal asked
        if time.monotonic() - asked <= _ASK_AGAIN_S:
            return True
        asked = time.monotonic()
        try:
            await identify(request, state, bearer, cookie)
        except ProblemError:
            return False
        except StoreError:
            # Nothing new comes from a store that is away, and the token is looked up again.
            return True
        return True

    return ask


StillValid = Annotated[Callable[[], Awaitable[bool]], Depends(still_valid)]


def _needs(scope: Scope) -> object:
    async def check(principal: Annotated[Principal, Depends(identify)]) -> Principal:
        if not principal.scope.includes(scope):
            raise ProblemError(
                403, "scope",
                f"this needs a token with scope {scope}, got one with {principal.scope}; ask an "
                "administrator for another",
            )  # fmt: skip
        return principal

    return Depends(check)


Reader = Annotated[Principal, _needs(Scope.READ)]
Writer = Annotated[Principal, _needs(Scope.SUBMIT)]
Admin = Annotated[Principal, _needs(Scope.ADMIN)]
