"""A submitted experiment as the queue knows it, and pages of them."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from focus_lab.errors import UserError
from focus_lab.lab.database import storable, utc
from focus_lab.lab.queue.admission import Waiting
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.tables import QueueRow


@dataclass(frozen=True)
class Entry:
    """A submitted experiment, as it was at `version`."""

    id: str
    name: str
    description: str
    user: str
    project: str
    fingerprint: str
    priority: int
    state: QueueState
    version: int
    attempt: int
    losses: int
    trials: int
    gang: Gang
    auto_gpus: bool
    submitted_at: datetime
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    message: str | None

    @property
    def job_id(self) -> str:
        """Name of its newest attempt's job: a second start of the same attempt is refused."""
        return f"{self.id}-{self.attempt}"

    @property
    def log_ids(self) -> dict[str, Any]:
        """What lines of a log that are about it carry."""
        return {"experiment": self.id, "attempt": self.attempt}

    @property
    def waiting(self) -> Waiting:
        """What admission needs to know of it."""
        return Waiting(
            self.id, self.user, self.project, self.priority, self.queued_at, self.gang,
            self.trials, self.auto_gpus,
        )  # fmt: skip


@dataclass(frozen=True)
class Filters:
    """Which experiments a page shows; None is any."""

    states: tuple[QueueState, ...] = ()
    user: str | None = None
    project: str | None = None
    name: str | None = None
    """Part of the name."""

    def conditions(self) -> list[Any]:
        """As SQL."""
        found: list[Any] = []
        if self.states:
            found.append(QueueRow.state.in_([state.value for state in self.states]))
        if self.user is not None:
            found.append(QueueRow.user == storable(self.user))
        if self.project is not None:
            found.append(QueueRow.project == storable(self.project))
        if self.name is not None:
            found.append(QueueRow.name.contains(storable(self.name), autoescape=True))
        return found


@dataclass(frozen=True)
class Page:
    """Some experiments, newest first."""

    entries: tuple[Entry, ...]
    next_cursor: str | None
    """Where the next page begins; None on the last one."""


def page_cursor(entry: Entry) -> str:
    """Opaque name of the place after an entry."""
    text = f"{entry.submitted_at.isoformat()}|{entry.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """The place that a cursor names.

    Raises:
        UserError: it is none of ours.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        moment, _, entry_id = base64.urlsafe_b64decode(padded.encode()).decode().partition("|")
        if not re.fullmatch(r"[0-9a-f]{32}", entry_id):
            raise ValueError
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None:
            raise ValueError
        return at, entry_id
    except (ValueError, binascii.Error, UnicodeError):
        raise UserError(
            f"cursor: names no page, got {cursor[:60]!r}; take next_cursor of a page, or none"
        ) from None


def entry_of(row: QueueRow | sa.Row[Any]) -> Entry:
    """From a row."""
    submitted, queued = utc(row.submitted_at), utc(row.queued_at)
    assert submitted is not None
    assert queued is not None
    return Entry(
        id=row.experiment_id,
        name=row.name,
        description=row.description,
        user=row.user,
        project=row.project,
        fingerprint=row.fingerprint,
        priority=row.priority,
        state=QueueState(row.state),
        version=row.version,
        attempt=row.attempt,
        losses=row.losses,
        trials=row.trials,
        gang=_gang(row),
        auto_gpus=row.auto_gpus > 0,
        submitted_at=submitted,
        queued_at=queued,
        started_at=utc(row.started_at),
        ended_at=utc(row.ended_at),
        message=row.message,
    )


def _gang(row: QueueRow | sa.Row[Any]) -> Gang:
    worker = Resources(row.worker_cpus, row.worker_gpus)
    parts = [
        whole / part
        for whole, part in ((row.gang_cpus, worker.cpus), (row.gang_gpus, worker.gpus))
        if part > 0
    ]
    return Gang(worker, max(1, round(max(parts, default=1.0))))
