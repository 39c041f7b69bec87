"""Attempts: admissions of experiments, from the grant of capacity to its return."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import StoreUnreachableError, UserError
from focus_lab.lab.database import Database, storable
from focus_lab.lab.queue.admission import Grant, Holding, Usage
from focus_lab.lab.queue.capacity import Gang, Resources
from focus_lab.lab.queue.changes import TRIES, find, lock_entry, set_entry, tell
from focus_lab.lab.queue.entry import Entry, entry_of
from focus_lab.lab.queue.events import write_event
from focus_lab.lab.queue.leadership import check_fence
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.states import TrialState
from focus_lab.lab.tables import AttemptRow, QueueRow, TrialRow


class SupersededError(UserError):
    """The attempt is not the one that is wanted; its driver ends without having done anything."""


@dataclass(frozen=True)
class Attempt:
    """One admission of an experiment."""

    entry: Entry
    granted: Resources
    trials: int
    """How many trials may run side by side."""
    began: bool
    outcome: str | None
    """What its driver said last: `succeeded`, `failed`, or nothing."""

    @property
    def holding(self) -> Holding:
        """What admission needs to know of it."""
        workers = self.trials * self.entry.gang.workers
        gang = Gang(self.granted.times(1 / workers), workers)
        return Holding(self.entry.id, self.entry.user, self.entry.project, gang)


class Attempts:
    """The attempts of a queue.

    Args:
        database: the queue's.
        policy: limits.
    """

    def __init__(self, database: Database, policy: Policy) -> None:
        self._database, self._policy = database, policy

    def open(self) -> list[Attempt]:
        """The attempts that hold capacity."""
        query = (
            sa.select(QueueRow, AttemptRow)
            .join(AttemptRow, AttemptRow.experiment_id == QueueRow.experiment_id)
            .where(AttemptRow.ended_at.is_(None))
            .order_by(AttemptRow.admitted_at)
        )
        with self._database.reading() as session:
            return [_attempt(entry_of(row), attempt) for row, attempt in session.execute(query)]

    def newest(self, entry: Entry) -> Attempt:
        """The newest attempt of an experiment that was admitted."""
        with self._database.reading() as session:
            now = find(session, entry.id)
            return _attempt(now, session.get_one(AttemptRow, (entry.id, now.attempt)))

    def usage(self) -> Usage:
        """GPU-hours and core-hours of the policy's window, what runs included."""
        with self._database.reading() as session:
            now = self._database.now(session)
            since = now - timedelta(days=self._policy.window_days)
            hours = _hours(self._database, since, now)
            # Summed by the database: a busy month has some ten thousand of them.
            found = session.execute(
                sa.select(
                    AttemptRow.user,
                    AttemptRow.project,
                    sa.func.sum(hours * AttemptRow.gpus).label("gpus"),
                    sa.func.sum(hours * AttemptRow.cpus).label("cpus"),
                )
                .where(sa.or_(AttemptRow.ended_at.is_(None), AttemptRow.ended_at > since))
                .group_by(AttemptRow.user, AttemptRow.project)
            ).all()
        gpus: dict[str, float] = defaultdict(float)
        projects: dict[str, float] = defaultdict(float)
        cpus: dict[str, float] = defaultdict(float)
        for row in found:
            gpus[row.user] += row.gpus
            projects[row.project] += row.gpus
            cpus[row.user] += row.cpus
        return Usage(gpus, projects, cpus)

    # What the leading dispatcher does

    def admit(self, entry: Entry, grant: Grant, fence: int, actor: str) -> Entry | None:
        """Let an experiment start; None when it was changed meanwhile, or is about to be.

        There is still the room that the grant was made for: nobody but the leader admits.

        Raises:
            FencedError: another dispatcher leads.
        """
        with self._database.session() as session:
            check_fence(session, fence)
            if not lock_entry(session, entry):
                return None
            values = {"state": QueueState.STARTING, "attempt": entry.attempt + 1}
            changed = set_entry(session, entry, **values)
            if changed is None:
                return None
            session.add(
                AttemptRow(
                    experiment_id=entry.id, number=changed.attempt, user=entry.user,
                    project=entry.project, cpus=grant.resources.cpus, gpus=grant.resources.gpus,
                    trials=grant.trials, done_before=_done(session, entry.id),
                    admitted_at=self._database.now(session),
                )
            )  # fmt: skip
            tell(
                session, self._database, changed, "admitted", actor,
                {
                    "attempt": changed.attempt,
                    "trials": grant.trials,
                    "granted": str(grant.resources),
                },
            )  # fmt: skip
            return changed

    def settle(self, entry: Entry, fence: int, actor: str) -> Entry | None:
        """The newest attempt's job has ended: give its capacity back, and decide what follows.

        What its driver has said counts. Where it said nothing, it was lost, and the experiment
        waits again where it stood, unless a person wanted its end.

        Returns:
            The experiment; None when it was changed meanwhile, or is about to be: look again.

        Raises:
            FencedError: another dispatcher leads.
        """
        with self._database.session() as session:
            check_fence(session, fence)
            if not lock_entry(session, entry):
                return None
            attempt = session.get_one(AttemptRow, (entry.id, entry.attempt))
            if attempt.ended_at is not None:
                return None
            now = self._database.now(session)
            state, values = self._verdict(session, entry, attempt)
            if state.is_terminal:
                values["ended_at"] = now
            changed = set_entry(session, entry, state=state, **values)
            if changed is None:
                return None
            outcome = attempt.outcome or (
                "lost" if entry.state in (QueueState.STARTING, QueueState.RUNNING) else "stopped"
            )
            session.execute(
                sa.update(AttemptRow)
                .where(AttemptRow.experiment_id == entry.id, AttemptRow.number == entry.attempt)
                .values(ended_at=now, outcome=outcome)
            )
            tell(
                session, self._database, changed, "ended", actor,
                {"attempt": entry.attempt, "outcome": outcome, "message": changed.message},
            )  # fmt: skip
            return changed

    def _verdict(
        self, session: Session, entry: Entry, attempt: AttemptRow
    ) -> tuple[QueueState, dict[str, Any]]:
        if attempt.outcome == "succeeded":
            return QueueState.SUCCEEDED, {"losses": 0}
        if entry.state is QueueState.CANCELLING:
            return QueueState.CANCELLED, {"message": None}
        if attempt.outcome == "failed":
            return QueueState.FAILED, {}
        if entry.state is QueueState.PAUSING:
            return QueueState.PAUSED, {"losses": 0}
        if attempt.outcome == "interrupted":
            return QueueState.QUEUED, {}
        losses = 1 if _done(session, entry.id) > attempt.done_before else entry.losses + 1
        if losses > self._policy.max_losses:
            return QueueState.FAILED, {
                "losses": losses,
                "message": f"its driver was lost {losses} times in a row without a finished trial; "
                "look at its logs, then retry it",
            }
        return QueueState.QUEUED, {"losses": losses}

    # What a driver does

    def begin(self, experiment_id: str, attempt: int) -> Attempt:
        """The attempt's driver runs. It holds the experiment's lease, so that there is one.

        May be repeated: the answer to the first call may have been lost.

        Raises:
            SupersededError: the attempt is not wanted (any more): its driver must do nothing.
        """
        for _ in range(TRIES):
            with self._database.session() as session:
                entry = find(session, experiment_id)
                row = session.get(AttemptRow, (entry.id, attempt))
                if (
                    entry.attempt != attempt
                    or entry.state not in (QueueState.STARTING, QueueState.RUNNING)
                    or row is None
                    or row.ended_at is not None
                ):
                    raise SupersededError(
                        f"experiment {entry.name}: attempt {attempt} is not wanted, got "
                        f"{entry.state.lower()} with attempt {entry.attempt}; nothing was done"
                    )
                if entry.state is QueueState.RUNNING:
                    return _attempt(entry, row)
                now = self._database.now(session)
                changed = set_entry(
                    session, entry, state=QueueState.RUNNING, started_at=entry.started_at or now
                )
                if changed is None:
                    continue
                row.began_at = now
                tell(session, self._database, changed, "started", "driver", {"attempt": attempt})
                return _attempt(changed, row)
        raise SupersededError(f"experiment {experiment_id}: is changed all the time; nothing done")

    def report(self, experiment_id: str, attempt: int, outcome: str, message: str | None) -> None:
        """The last word of a driver; the dispatcher acts on it when its process has ended.

        May be repeated. Of an attempt that has ended nothing more is heard.

        Args:
            experiment_id: the experiment.
            attempt: its attempt.
            outcome: `succeeded`, `failed`, or `interrupted`: it was told to end.
            message: why it failed.
        """
        text = storable(message) if message else None
        for _ in range(TRIES):
            with self._database.session() as session:
                entry = find(session, experiment_id)
                row = session.get(AttemptRow, (entry.id, attempt))
                if row is None or row.ended_at is not None or row.outcome == outcome:
                    return
                # The entry first: whoever settles takes both rows in this order, too.
                changed = set_entry(session, entry, message=text)
                if changed is None:
                    continue
                row.outcome = outcome
                tell(
                    session, self._database, changed, "reported", "driver",
                    {"attempt": attempt, "outcome": outcome, "message": text},
                )  # fmt: skip
                return
        raise StoreUnreachableError(
            f"experiment {experiment_id}: is changed all the time, got {TRIES} conflicts; try again"
        )

    def tell(self, experiment_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Write an event of a driver: a trial has begun, an epoch has ended."""
        with self._database.session() as session:
            write_event(session, self._database, experiment_id, kind, "driver", data)


def _hours(database: Database, since: datetime, now: datetime) -> sa.ColumnElement[Any]:
    """For how long an attempt has held capacity since then."""
    kind = sa.DateTime(timezone=True)

    def hours(moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[Any]:
        if database.is_postgresql:
            return sa.cast(sa.extract("epoch", moment), sa.Float) / 3600
        return sa.func.julianday(moment, type_=sa.Float) * 24

    first, last = sa.literal(since, kind), sa.literal(now, kind)
    begin = sa.case((AttemptRow.admitted_at > first, AttemptRow.admitted_at), else_=first)
    span = hours(sa.func.coalesce(AttemptRow.ended_at, last)) - hours(begin)
    # A clock may have been set back.
    return sa.case((span > 0, span), else_=0.0)


def _done(session: Session, experiment_id: str) -> int:
    count = session.scalar(
        sa.select(sa.func.count())
        .select_from(TrialRow)
        .where(
            TrialRow.experiment_id == experiment_id, TrialRow.state == TrialState.SUCCEEDED.value
        )
    )
    return count or 0


def _attempt(entry: Entry, attempt: AttemptRow) -> Attempt:
    return Attempt(
        entry,
        Resources(attempt.cpus, attempt.gpus),
        attempt.trials,
        attempt.began_at is not None,
        attempt.outcome,
    )
