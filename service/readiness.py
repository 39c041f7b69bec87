"""Readiness: looked at once a second at most, however many ask; anybody may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import httpx2
from anyio import to_thread

from focus_lab.client import models
from focus_lab.errors import StoreError
from focus_lab.lab.database import Database
from focus_lab.lab.queue.leadership import leader

_FRESH_S = 1.0
_TRACKER_S = 0.5
"""How long MLflow may take: whoever asks for readiness often waits no longer than a second."""


class Readiness:
    """Whether the service can do its work.

    Args:
        database: of the store.
        clock: seconds.
        tracking_uri: of MLflow; only a server's is looked at.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = time.monotonic,
        tracking_uri: str | None = None,
    ) -> None:
        self._database, self._clock, self._tracking_uri = database, clock, tracking_uri
        self._known: models.Health | None = None
        self._until = 0.0
        self._looking = asyncio.Lock()

    async def health(self) -> models.Health:
        """As it was within the last second."""
        # Whoever waits here takes no thread from those who have a token.
        async with self._looking:
            if self._known is None or self._clock() >= self._until:
                self._known = await to_thread.run_sync(_look, self._database, self._tracking_uri)
                # From its end on: whoever waited for a slow one needs none of their own.
                self._until = self._clock() + _FRESH_S
            return self._known


def _look(database: Database, tracking_uri: str | None) -> models.Health:
    checks = {}
    try:
        current = database.is_current()
        text = "answers" if current else "its tables are not current: run `focus-lab migrate`"
        checks["store"] = models.Check(ok=current, text=text)
        lead = leader(database)
        checks["dispatcher"] = models.Check(
            ok=lead is not None, text="leads" if lead else "none runs: experiments wait"
        )
        reached = bool(lead and lead.told.get("cluster"))
        checks["cluster"] = models.Check(
            ok=reached, text="answers" if reached else "does not answer: experiments wait"
        )
    except StoreError as error:
        checks["store"] = models.Check(ok=False, text=str(error))
    if tracking_uri and tracking_uri.startswith(("http:", "https:")):
        reached = _answers(tracking_uri)
        text = "answers" if reached else "does not answer: no curves; drivers tell it later"
        checks["mlflow"] = models.Check(ok=reached, text=text)
    status: Literal["ok", "degraded", "unready"] = (
        "ok" if all(check.ok for check in checks.values()) else "degraded"
    )
    if not checks["store"].ok:
        status = "unready"
    return models.Health(status=status, checks=checks)


def _answers(uri: str) -> bool:
    """Whether a server is there, whatever it answers to whom it does not know."""
    try:
        httpx2.get(f"{uri.rstrip('/')}/health", timeout=_TRACKER_S)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return False
    return True
