"""What is removed when an experiment has been over for long: checkpoints, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from focus_lab.lab.lease import SECONDS, is_dead, new_owner
from focus_lab.lab.queue.changes import set_entry, tell
from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import TERMINAL
from focus_lab.lab.store import LeaseHeldError
from focus_lab.lab.tables import QueueRow
from focus_lab.training.folder import BEST, STEPS, checkpoint_folder


def remove_old_checkpoints(queue: Queue) -> int:
    """Remove checkpoints of experiments that ended before the policy's `keep_days`.

    Numbers, reports and the weights of the best epoch stay, or the newest ones where there are no
    best. An experiment that is tried again after this trains what has not succeeded from its
    beginning.

    Returns:
        Bytes that were freed.
    """
    if queue.policy.keep_days is None:
        return 0
    return sum(_remove(queue, entry) for entry in _ended_before(queue, queue.policy.keep_days))


def _remove(queue: Queue, entry: Entry) -> int:
    """Remove an experiment's, unless it has been changed since it was looked at.

    No driver begins meanwhile, for it would need the lease. Whether it is removed is decided with
    the event that tells it, by compare and set: who tries the experiment again has come before
    that, and nothing is removed, or after it, and finds it removed.
    """
    store, owner = queue.store, new_owner()
    folder = store.experiment(entry.id).folder
    # Of most nothing is left to remove, hour after hour: a lease is taken where something is.
    if next(_removable(folder), None) is None:
        return 0
    holder = store.lease_owner(entry.id)
    dead = {holder} if holder and is_dead(holder) else set()
    try:
        store.take_lease(entry.id, owner, SECONDS, dead)
    except LeaseHeldError:
        # Somebody carries it out after all, or removes the same; there is a next time.
        return 0
    try:
        sizes = {file: file.stat().st_size for file in _removable(folder)}
        if not sizes:
            return 0
        size = sum(sizes.values())
        with store.database.session() as session:
            marked = set_entry(session, entry)
            if marked is None:
                return 0
            tell(session, store.database, marked, "retention", "policy", {"bytes": size})
        for file in sizes:
            # Renewed each time: a disk elsewhere may be slow, and whoever has taken over is left
            # alone.
            store.take_lease(entry.id, owner, SECONDS, set())
            file.unlink(missing_ok=True)
        return size
    except LeaseHeldError:
        return 0
    finally:
        store.drop_lease(entry.id, owner)


def _removable(folder: Path) -> Iterator[Path]:
    for trial in (folder / "trials").glob("*"):
        checkpoints = checkpoint_folder(trial)
        steps = sorted(checkpoints.glob(STEPS))
        yield from steps if (checkpoints / BEST).is_file() else steps[:-1]


def _ended_before(queue: Queue, days: float) -> list[Entry]:
    database = queue.store.database
    with database.reading() as session:
        limit = database.now(session) - timedelta(days=days)
        query = sa.select(QueueRow).where(
            QueueRow.state.in_([state.value for state in TERMINAL]), QueueRow.ended_at < limit
        )
        return [entry_of(row) for row in session.scalars(query)]
