"""The event log: what happened to experiments, in the order in which it was committed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import UserError
from focus_lab.lab.database import Database, utc
from focus_lab.lab.tables import EventRow


@dataclass(frozen=True, order=True)
class Cursor:
    """A place in the log; events after it are newer."""

    transaction: int = 0
    id: int = 0

    def __str__(self) -> str:
        return f"{self.transaction}-{self.id}"

    @staticmethod
    def parse(text: str) -> Cursor:
        """Read it back.

        Raises:
            UserError: it is no such place.
        """
        match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", text)
        if match is None:
            raise UserError(
                f"Last-Event-ID: is no place in the log, got {text[:60]!r}; send the id of an event"
            )
        return Cursor(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    cursor: Cursor
    experiment_id: str | None
    at: datetime
    kind: str
    actor: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What is written of an event; its place and time are the database's."""

    experiment_id: str | None
    kind: str
    actor: str
    data: Mapping[str, Any]


def write_events(session: Session, database: Database, told: Sequence[Told]) -> None:
    """Write events, in this order, within the transaction of what they tell."""
    statement = EventRow.insert()
    common: dict[str, Any] = {}
    if database.is_postgresql:
        transaction = _number(sa.func.pg_current_xact_id())
        statement = statement.values(transaction=transaction, at=database.clock())
    else:
        common = {"transaction": 0, "at": database.now(session)}
    session.execute(statement, [vars(one) | common for one in told])


def write_event(
    session: Session,
    database: Database,
    experiment_id: str | None,
    kind: str,
    actor: str,
    data: Mapping[str, Any],
) -> None:
    """Write an event within the transaction of what it tells."""
    write_events(session, database, [Told(experiment_id, kind, actor, dict(data))])


class EventLog:
    """Reads the log.

    In PostgreSQL an event is shown once every transaction that began before its own has ended: only
    then nothing can still come before it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(
        self, cursor: Cursor, *, experiment_id: str | None = None, limit: int = 500
    ) -> list[Event]:
        """The next events.

        Args:
            cursor: the last one that is known.
            experiment_id: of this experiment only.
            limit: how many at most.
        """
        known: Any = sa.literal(cursor.transaction)
        if self._database.is_postgresql:
            # A place of the server that this one was restored from: events keep their ids.
            known = sa.case((known >= _not_yet_begun(), 0), else_=known)
        query = sa.select(EventRow).where(
            sa.tuple_(EventRow.transaction, EventRow.id) > sa.tuple_(known, sa.literal(cursor.id))
        )
        if experiment_id is not None:
            query = query.where(EventRow.experiment_id == experiment_id)
        query = self._settled(query).order_by(EventRow.transaction, EventRow.id).limit(limit)
        with self._database.reading() as session:
            return [_event(row) for row in session.scalars(query)]

    def newest(self) -> Cursor:
        """The place after which everything is yet to come."""
        query = self._settled(sa.select(EventRow.transaction, EventRow.id))
        query = query.order_by(EventRow.transaction.desc(), EventRow.id.desc()).limit(1)
        with self._database.reading() as session:
            row = session.execute(query).one_or_none()
        return Cursor(*row) if row else Cursor()

    def adopt(self) -> None:
        """Put what another PostgreSQL server has numbered before all that this one will.

        A copy that is restored on a new server has numbers of transactions that are still to come
        there: its events would not be shown until then, and new ones before them.
        """
        if not self._database.is_postgresql:
            return
        foreign = sa.select(sa.func.max(EventRow.id)).where(
            EventRow.transaction >= _not_yet_begun()
        )
        with self._database.session() as session:
            newest = session.scalar(foreign)
            if newest is not None:
                session.execute(
                    sa.update(EventRow).where(EventRow.id <= newest).values(transaction=0)
                )

    def _settled(self, query: Any) -> Any:
        if not self._database.is_postgresql:
            return query
        oldest = _number(sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot()))
        return query.where(EventRow.transaction < oldest)


def _not_yet_begun() -> Any:
    """The number from which on no transaction of this PostgreSQL server has begun."""
    return _number(sa.func.pg_snapshot_xmax(sa.func.pg_current_snapshot()))


def _number(transaction: Any) -> Any:
    return sa.cast(sa.cast(transaction, sa.Text), sa.BigInteger)


def _event(row: EventRow) -> Event:
    at = utc(row.at)
    assert at is not None
    return Event(
        Cursor(row.transaction, row.id), row.experiment_id, at, row.kind, row.actor, row.data
    )
