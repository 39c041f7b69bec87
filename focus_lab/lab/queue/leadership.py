"""Which of several dispatchers leads. An older leader's writes are refused by its fence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import StoreError
from focus_lab.lab.database import Database, rows, utc
from focus_lab.lab.lease import is_dead
from focus_lab.lab.queue.events import write_event
from focus_lab.lab.tables import LeadRow

DISPATCHER, DRAIN = "dispatcher", "drain"


class FencedError(StoreError):
    """Another dispatcher leads by now; this one starts nothing more."""


@dataclass(frozen=True)
class Lead:
    """Who leads, and what it last said of itself."""

    owner: str | None
    fence: int
    expires_at: datetime
    told: dict[str, Any]


class Leadership:
    """The right to lead, held for some seconds at a time.

    Args:
        database: where it is kept.
        owner: names this process, uniquely.
        seconds: how long it lasts unless renewed.
    """

    def __init__(self, database: Database, owner: str, seconds: float = 15.0) -> None:
        self._database, self._owner, self._seconds = database, owner, seconds

    def hold(self, told: Mapping[str, Any]) -> int | None:
        """Become or stay the leader.

        Args:
            told: what this process says of itself.

        Returns:
            The fence to write with; None while another one leads.
        """
        with self._database.session() as session:
            _ensure(session, DISPATCHER, self._database.now(session))
            now = self._database.now(session)
            row = session.scalars(
                sa.select(LeadRow)
                .where(LeadRow.name == DISPATCHER)
                .with_for_update()
                # As it is once the lock is held: another one may have become the leader meanwhile.
                .execution_options(populate_existing=True)
            ).one()
            expires = utc(row.expires_at)
            assert expires is not None
            if row.owner != self._owner:
                if row.owner is not None and expires > now and not is_dead(row.owner):
                    return None
                row.owner, row.fence = self._owner, row.fence + 1
                write_event(
                    session, self._database, None, "dispatcher", self._owner[:64],
                    {"leads": True, "fence": row.fence},
                )  # fmt: skip
            row.expires_at = now + timedelta(seconds=self._seconds)
            row.told = dict(told)
            return row.fence

    def give_up(self) -> None:
        """Let another one lead at once."""
        with self._database.session() as session:
            session.execute(
                sa.update(LeadRow)
                .where(LeadRow.name == DISPATCHER, LeadRow.owner == self._owner)
                .values(owner=None)
            )


def check_fence(session: Session, fence: int) -> None:
    """See, within a transaction, that the leader is still the one with this fence.

    Raises:
        FencedError: it is not.
    """
    # Locked: who takes over meanwhile waits for this transaction, and then sees what it wrote.
    now = session.scalar(
        sa.select(LeadRow.fence).where(LeadRow.name == DISPATCHER).with_for_update()
    )
    if now != fence:
        raise FencedError(f"dispatcher: another one leads, got fence {fence}; it is {now} by now")


def leader(database: Database) -> Lead | None:
    """Who leads now; None when nobody does."""
    with database.reading() as session:
        row = session.get(LeadRow, DISPATCHER)
        if row is None:
            return None
        expires = utc(row.expires_at)
        assert expires is not None
        if row.owner is None or expires < database.now(session):
            return None
        return Lead(row.owner, row.fence, expires, row.told)


def is_draining(database: Database) -> bool:
    """Whether nothing more is to be started."""
    with database.reading() as session:
        row = session.get(LeadRow, DRAIN)
        return row is not None and row.owner is not None


def drain(database: Database, actor: str, *, on: bool) -> None:
    """Start nothing more, or go on; what runs is left alone."""
    with database.session() as session:
        now = database.now(session)
        _ensure(session, DRAIN, now)
        changed = session.execute(
            sa.update(LeadRow)
            .where(
                LeadRow.name == DRAIN,
                LeadRow.owner.is_(None) if on else LeadRow.owner.is_not(None),
            )
            .values(owner=actor if on else None)
        )
        if rows(changed):
            write_event(session, database, None, "drain", actor, {"on": on})


def _ensure(session: Session, name: str, now: datetime) -> None:
    if session.get(LeadRow, name) is not None:
        return
    try:
        with session.begin_nested():
            session.add(LeadRow(name=name, owner=None, fence=0, expires_at=now, told={}))
    except sa.exc.IntegrityError:
        # Another process made it at the same moment.
        return
