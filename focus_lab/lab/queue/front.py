"""The front of the queue: of however many that wait, those on whom a round's grants depend.

Experiments of one class have the same user, project, priority and need. Among them the earlier one
comes first at any time and with any share, every quota holds for all of them, and whoever starts
takes room for one trial at least. So of each class no more matter than the empty cluster has room
for, and one more: somebody is left who could start.
"""

from __future__ import annotations

import sqlalchemy as sa

from focus_lab.lab.database import Database
from focus_lab.lab.queue.capacity import Capacity, Resources
from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.tables import QueueRow

_ROUNDING = 1e-6
"""As `Resources` has it."""


def could_start(database: Database, free: Resources) -> bool:
    """Whether anybody waits for no more than this: whether deciding is worth its while.

    Args:
        database: the queue's.
        free: of the cluster.

    Raises:
        StoreError: the database fails.
    """
    query = sa.select(QueueRow.experiment_id).where(
        QueueRow.state == QueueState.QUEUED,
        QueueRow.gang_cpus <= free.cpus + _ROUNDING,
        QueueRow.gang_gpus <= free.gpus + _ROUNDING,
    )
    with database.reading() as session:
        return session.execute(query.limit(1)).first() is not None


def front(database: Database, capacity: Capacity) -> list[Entry]:
    """Those on whom it depends who starts: without the others the grants are the same.

    Args:
        database: the queue's.
        capacity: of the cluster, whatever of it is free.

    Raises:
        StoreError: the database fails.
    """
    classes = (
        QueueRow.user, QueueRow.project, QueueRow.priority, QueueRow.worker_cpus,
        QueueRow.worker_gpus, QueueRow.gang_cpus, QueueRow.gang_gpus, QueueRow.auto_gpus,
    )  # fmt: skip
    takes = sa.case((QueueRow.auto_gpus > 0, QueueRow.auto_gpus), else_=QueueRow.gang_gpus)
    gpus = takes if capacity.has_gpus else QueueRow.gang_gpus
    before = (
        sa.func.row_number().over(
            partition_by=classes, order_by=(QueueRow.queued_at, QueueRow.experiment_id)
        )
        - 1
    )
    # The database counts, so that of twenty thousand rows only the few that matter come here.
    counted = (
        sa.select(
            QueueRow.experiment_id,
            (before * QueueRow.gang_cpus).label("cpus_before"),
            (before * gpus).label("gpus_before"),
        )
        .where(QueueRow.state == QueueState.QUEUED)
        .subquery()
    )
    query = (
        sa.select(*QueueRow.__table__.columns)
        .join(counted, counted.c.experiment_id == QueueRow.experiment_id)
        .where(
            counted.c.cpus_before <= capacity.total.cpus + _ROUNDING,
            counted.c.gpus_before <= capacity.total.gpus + _ROUNDING,
        )
    )
    with database.reading() as session:
        return [entry_of(row) for row in session.execute(query)]
