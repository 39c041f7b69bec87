"""What is removed when an experiment has been over for long: checkpoints, nothing else."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from focus_lab.lab.queue.changes import tell
from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import TERMINAL
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
    freed = 0
    for entry in _ended_before(queue, queue.policy.keep_days):
        size = 0
        for trial in (queue.store.experiment(entry.id).folder / "trials").glob("*"):
            folder = checkpoint_folder(trial)
            steps = sorted(folder.glob(STEPS))
            for file in steps if (folder / BEST).is_file() else steps[:-1]:
                size += file.stat().st_size
                file.unlink()
        if size:
            with queue.store.database.session() as session:
                tell(session, queue.store.database, entry, "retention", "policy", {"bytes": size})
        freed += size
    return freed


def _ended_before(queue: Queue, days: float) -> list[Entry]:
    database = queue.store.database
    with database.reading() as session:
        limit = database.now(session) - timedelta(days=days)
        query = sa.select(QueueRow).where(
            QueueRow.state.in_([state.value for state in TERMINAL]), QueueRow.ended_at < limit
        )
        return [entry_of(row) for row in session.scalars(query)]
