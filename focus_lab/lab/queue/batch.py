"""Submissions that come at the same moment, in one transaction.

Its questions and its commit cost as much for thirty experiments as for one. What is new goes in
together; whatever needs a second look, and everything if somebody else was faster, is put one by
one, as `Queue.put` does it. The outcome is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.events import write_events
from focus_lab.lab.queue.queue import Queue, count_queued, limits, remember
from focus_lab.lab.queue.submission import Submission
from focus_lab.lab.store import new_rows
from focus_lab.lab.tables import ExperimentRow, IdempotencyRow, QueueRow, TrialRow

Outcome = tuple[Entry, bool] | Exception
"""The experiment, and whether the submission has queued it; or why it was refused, or what has gone
wrong with it: nobody else is to suffer from that."""


def put_all(queue: Queue, submissions: Sequence[Submission]) -> list[Outcome]:
    """Queue several experiments; each outcome is that of `Queue.put`.

    Args:
        queue: takes them.
        submissions: in the order in which they came.
    """
    made: dict[int, Entry] = {}
    if len(submissions) > 1:
        try:
            with queue.store.database.session() as session:
                made = _put_new(session, queue, submissions)
        except Exception:
            # Somebody else took a name or a key at this moment, the store is away, or one of them
            # cannot be written: one by one each is told what is so.
            made = {}
    return [
        (made[number], True) if number in made else _put_one(queue, submission)
        for number, submission in enumerate(submissions)
    ]


def _put_one(queue: Queue, submission: Submission) -> Outcome:
    try:
        return queue.put(submission)
    except Exception as error:
        return error


def _put_new(session: Session, queue: Queue, submissions: Sequence[Submission]) -> dict[int, Entry]:
    """Number of a submission -> its experiment, of those that are new and within quotas."""
    database = queue.store.database
    taken = _taken(session, submissions)
    room = _room(session, queue, submissions)
    now = database.now(session)
    made: dict[int, Entry] = {}
    experiments, trials, entries = [], [], []
    for number, one in enumerate(submissions):
        wanted = {("name", one.spec.name), (one.submitter.user, one.key or "")} - {
            (one.submitter.user, "")
        }
        limited = limits(queue.policy, one.submitter)
        if wanted & taken or any(room[who] <= 0 for who in limited):
            continue
        # The second of two with one name or key looks at what the first has become.
        taken |= wanted
        for who in limited:
            room[who] -= 1
        experiment, its_trials = new_rows(one.spec, one.plan, one.folder)
        values = one.new_values(experiment["id"], now)
        experiments.append(experiment)
        trials += its_trials
        entries.append(values)
        made[number] = entry_of(QueueRow(**values))
    if made:
        session.execute(ExperimentRow.insert(), experiments)
        session.execute(TrialRow.insert(), trials)
        session.execute(QueueRow.insert(), entries)
        remember(session, [(submissions[n], entry.id) for n, entry in made.items()], now)
        write_events(session, database, [submissions[n].event(e) for n, e in made.items()])
    return made


def _taken(session: Session, submissions: Sequence[Submission]) -> set[tuple[str, str]]:
    """("name", name) and (user, key) of what is known already."""
    names = {one.spec.name for one in submissions}
    keys = {(one.submitter.user, one.key) for one in submissions if one.key is not None}
    known = {
        ("name", name)
        for name in session.scalars(
            sa.select(ExperimentRow.name).where(ExperimentRow.name.in_(names))
        )
    }
    if keys:
        # Old ones count as well: whoever looks closer decides.
        asked = sa.select(IdempotencyRow.user, IdempotencyRow.key).where(
            sa.tuple_(IdempotencyRow.user, IdempotencyRow.key).in_(keys)
        )
        known |= {(row.user, row.key) for row in session.execute(asked)}
    return known


def _room(
    session: Session, queue: Queue, submissions: Sequence[Submission]
) -> dict[tuple[str, str], int]:
    """How many more each user and project with a limit may have."""
    every: dict[tuple[str, str], int] = {}
    for one in submissions:
        every |= limits(queue.policy, one.submitter)
    # Always users before projects, and by name: two that wait for each other would wait for ever.
    return {
        who: every[who] - count_queued(session, queue.store.database, *who)
        for who in sorted(every, key=lambda who: (who[0] != "user", who[1]))
    }
