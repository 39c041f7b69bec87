"""One change of a submitted experiment: compare and set, and the event that tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import UserError
from focus_lab.lab.database import Database, storable
from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.events import Told, write_events
from focus_lab.lab.tables import ExperimentRow, QueueRow

TRIES = 20
"""Of a change that others get in the way of."""

# Columns and not objects: a session would hand out an object as it once was.
_COLUMNS = QueueRow.__table__.columns


class NoEntryError(UserError):
    """There is no such submitted experiment."""


class StaleEntryError(Exception):
    """Somebody else changed the entry in between."""


def find(session: Session, entry_id: str) -> Entry:
    """A submitted experiment by id or name.

    Raises:
        NoEntryError: there is none.
    """
    entry_id = storable(entry_id)
    of_queue = sa.select(*_COLUMNS)
    # The id first: somebody may give an experiment another one's id for a name.
    row = session.execute(of_queue.where(QueueRow.experiment_id == entry_id)).one_or_none()
    if row is None:
        # By the other table, which has an index of names.
        named = sa.select(ExperimentRow.id).where(ExperimentRow.name == entry_id)
        row = session.execute(
            of_queue.where(QueueRow.experiment_id == named.scalar_subquery())
        ).one_or_none()
    if row is None:
        raise NoEntryError(
            f"experiment: no such name or id was submitted, got {entry_id[:80]!r}; "
            "see GET /experiments"
        )
    return entry_of(row)


def lock_entry(session: Session, entry: Entry) -> bool:
    """Lock an entry that is still as it was read; False when it is not, or is locked by another.

    Whoever looks after all entries does not wait for the one that a frozen process holds. SQLite
    lets one writer in at a time: there nothing is locked by another.
    """
    as_it_was = sa.select(QueueRow.version).where(
        QueueRow.experiment_id == entry.id, QueueRow.version == entry.version
    )
    return session.scalar(as_it_was.with_for_update(skip_locked=True)) is not None


def set_entry(session: Session, entry: Entry, **values: Any) -> Entry | None:
    """Compare and set; None when somebody else was faster."""
    changed = session.execute(
        sa.update(QueueRow)
        .where(QueueRow.experiment_id == entry.id, QueueRow.version == entry.version)
        .values(version=entry.version + 1, **values)
        .returning(*_COLUMNS)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return entry_of(changed) if changed else None


def change_entry(session: Session, entry: Entry, **values: Any) -> Entry:
    """Compare and set.

    Raises:
        StaleEntryError: somebody else was faster; the transaction is to be begun again.
    """
    changed = set_entry(session, entry, **values)
    if changed is None:
        raise StaleEntryError
    return changed


def tell(
    session: Session,
    database: Database,
    entry: Entry,
    kind: str,
    actor: str,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write the event of a change, within its transaction."""
    write_events(session, database, [told_of(entry, kind, actor, data)])


def told_of(entry: Entry, kind: str, actor: str, data: Mapping[str, Any] | None = None) -> Told:
    """The event of a change."""
    content = {"name": entry.name, "state": entry.state.value, "version": entry.version}
    return Told(entry.id, kind, actor, content | dict(data or {}))
