"""The queue: every change of a submitted experiment, each with its event in one transaction.

Changes are compare-and-set on what the caller last saw, so that two can never both happen. What
only a leading dispatcher may do is fenced as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import StoreError, UserError
from focus_lab.lab.database import Database, utc
from focus_lab.lab.queue.changes import TRIES, StaleEntryError, change_entry, find, tell
from focus_lab.lab.queue.entry import (
    Entry,
    Filters,
    Page,
    entry_of,
    page_cursor,
    read_cursor,
)
from focus_lab.lab.queue.events import write_events
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.states import ACTIONS, TERMINAL, Action, QueueState
from focus_lab.lab.queue.submission import Submission, Submitter, check_priority
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import (
    ExperimentRow,
    IdempotencyRow,
    QueueRow,
    TrialRow,
)
from focus_lab.specs.base import fingerprint
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan

KEY_LIFE = timedelta(hours=24)
"""How long an Idempotency-Key is remembered."""


class NameTakenError(UserError):
    """The experiment's name belongs to somebody else."""


class ActiveError(UserError):
    """The experiment is not at its end; wait for it or cancel it."""


class KeyReusedError(UserError):
    """The Idempotency-Key was used for another request; take a new one."""


class QuotaError(UserError):
    """A quota does not allow it."""


class NotAllowedError(UserError):
    """The experiment's state does not allow it."""


class ChangedError(UserError):
    """The experiment is no longer what the change was decided on."""


class Queue:
    """Submitted experiments.

    Args:
        store: where experiments and trials are; the queue is in the same database.
        policy: limits, or what gives them as they are now.
    """

    def __init__(self, store: Store, policy: Policy | Callable[[], Policy] | None = None) -> None:
        self.store, self._database = store, store.database
        given = Policy() if policy is None else policy
        self._policy: Callable[[], Policy] = (lambda: given) if isinstance(given, Policy) else given

    @property
    def policy(self) -> Policy:
        """Limits, as they are now."""
        return self._policy()

    # What users do

    def submit(
        self,
        spec: ExperimentSpec,
        plan: Plan,
        folder: Path,
        submitter: Submitter,
        *,
        priority: int = 0,
        key: str | None = None,
    ) -> tuple[Entry, bool]:
        """Queue an experiment; the same spec again is the same experiment.

        One that has ended is queued again: what succeeded is kept, the rest is tried, new cells are
        added.

        Args:
            spec: the experiment.
            plan: its whole plan.
            folder: where its files are to be.
            submitter: who wants it.
            priority: the higher, the earlier, from -1000 to 1000.
            key: the request's Idempotency-Key.

        Returns:
            The experiment, and whether this call has queued it.

        Raises:
            NameTakenError: the name belongs to somebody else.
            ActiveError: another spec of this name waits or runs.
            KeyReusedError: the key was used for another request.
            QuotaError: the submitter has as much as allowed.
            UserError: the priority is none.
        """
        return self.put(Submission(spec, plan, folder, submitter, priority, key))

    def put(self, submission: Submission) -> tuple[Entry, bool]:
        """As `submit`."""
        for _ in range(TRIES):
            try:
                with self._database.session() as session:
                    return self._put(session, submission)
            except StaleEntryError:
                continue
            except StoreError as error:
                # Somebody else submitted the same name or key at the same moment: look again.
                if not isinstance(error.__cause__, sa.exc.IntegrityError):
                    raise
        raise ActiveError(
            f"experiment {submission.spec.name}: others change it all the time, got {TRIES} "
            "conflicts; try again"
        )

    def _put(self, session: Session, submission: Submission) -> tuple[Entry, bool]:
        spec, submitter, key = submission.spec, submission.submitter, submission.key
        # One question, and an answer in any case: of the clock at least.
        clock = sa.select(self._database.clock().label("now")).subquery()
        found = session.execute(
            sa.select(clock.c.now, ExperimentRow, QueueRow)
            .select_from(clock)
            .outerjoin(ExperimentRow, ExperimentRow.name == spec.name)
            .outerjoin(QueueRow, QueueRow.experiment_id == ExperimentRow.id)
        ).one()
        experiment, row = found.ExperimentRow, found.QueueRow
        now = utc(found.now)
        assert now is not None
        if key is not None:
            known = session.get(IdempotencyRow, (submitter.user, key))
            created = utc(known.created_at) if known else None
            if known is not None and created is not None and created > now - KEY_LIFE:
                if known.fingerprint != submission.request:
                    raise KeyReusedError(
                        f"Idempotency-Key: was used for another request, got {key!r}; "
                        "take a new one"
                    )
                return find(session, known.experiment_id), False
        entry = entry_of(row) if row is not None else None
        if entry is not None:
            if entry.user != submitter.user:
                raise NameTakenError(
                    f"name: is taken by an experiment of {entry.user}, got {spec.name!r}; "
                    "choose another name"
                )
            same = entry.fingerprint == submission.mark
            if same and (not entry.state.is_terminal or entry.state is QueueState.SUCCEEDED):
                remember(session, [(submission, entry.id)], now)
                return entry, False
            if not entry.state.is_terminal:
                raise ActiveError(
                    f"experiment {spec.name}: is {entry.state.lower()} with another spec; "
                    "wait for its end, cancel it, or choose another name"
                )
        elif experiment is not None:
            expires = utc(experiment.lease_expires_at)
            if experiment.lease_owner is not None and expires is not None and expires > now:
                raise ActiveError(
                    f"experiment {spec.name}: is carried out from a command line, got "
                    f"{experiment.lease_owner}; wait for its end or choose another name"
                )
            # Whose it is nobody knows; the same spec again changes nothing of it.
            if fingerprint(experiment.spec) != submission.mark:
                raise NameTakenError(
                    f"name: is taken by an experiment that was begun from a command line, got "
                    f"{spec.name!r}; choose another name"
                )
        self._check_queued(session, submitter)
        recorded = self.store.record_in(
            session, experiment, spec, submission.plan, submission.folder
        )
        if entry is None:
            values = submission.new_values(recorded.id, now)
            session.execute(QueueRow.insert(), values)
            entry = entry_of(QueueRow(**values))
        else:
            # As it was when this was found to be allowed: the row may be another by now.
            entry = change_entry(session, entry, **submission.values(now))
        remember(session, [(submission, entry.id)], now)
        write_events(session, self._database, [submission.event(entry)])
        return entry, True

    def act(
        self, entry_id: str, action: Action, actor: str, versions: Set[int] | None = None
    ) -> Entry:
        """Cancel, pause, resume or retry.

        Args:
            entry_id: the experiment.
            action: what to do.
            actor: who does it.
            versions: only at one of these; None at any.

        Raises:
            NoEntryError: there is no such experiment.
            NotAllowedError: its state does not allow it.
            ChangedError: it is at another version.
        """

        def change(session: Session, entry: Entry) -> Entry:
            target = ACTIONS[action].get(entry.state)
            if target is None:
                raise NotAllowedError(
                    f"experiment {entry.name}: cannot {action} it, got {entry.state.lower()}; "
                    f"allowed while {', '.join(s.lower() for s in ACTIONS[action])}"
                )
            if target is entry.state:
                return entry
            now = self._database.now(session)
            values: dict[str, Any] = {"state": target}
            if target is QueueState.QUEUED:
                self._check_queued(session, Submitter(entry.user, entry.project))
                values |= {"queued_at": now, "ended_at": None, "message": None, "losses": 0}
                self._retry_trials(session, entry)
            elif target.is_terminal:
                values |= {"ended_at": now}
            changed = change_entry(session, entry, **values)
            tell(session, self._database, changed, action, actor)
            return changed

        return self._retried(entry_id, change, versions)

    def set_priority(
        self, entry_id: str, priority: int, actor: str, versions: Set[int] | None = None
    ) -> Entry:
        """Move it forward or back in the queue.

        Args:
            entry_id: the experiment.
            priority: the higher, the earlier.
            actor: who does it.
            versions: only at one of these; None at any.

        Raises:
            NoEntryError: there is no such experiment.
            ChangedError: it is at another version.
            UserError: the priority is none.
        """
        check_priority(priority)

        def change(session: Session, entry: Entry) -> Entry:
            if entry.priority == priority:
                return entry
            changed = change_entry(session, entry, priority=priority)
            tell(session, self._database, changed, "priority", actor, {"priority": priority})
            return changed

        return self._retried(entry_id, change, versions)

    # What everybody may ask

    def entry(self, entry_id: str) -> Entry:
        """A submitted experiment by id or name.

        Raises:
            NoEntryError: there is none.
        """
        with self._database.reading() as session:
            return find(session, entry_id)

    def page(self, filters: Filters, limit: int = 50, cursor: str | None = None) -> Page:
        """Experiments, newest first.

        Raises:
            UserError: the cursor names no page.
        """
        query = sa.select(QueueRow).where(*filters.conditions())
        if cursor is not None:
            at, entry_id = read_cursor(cursor)
            query = query.where(
                sa.or_(
                    QueueRow.submitted_at < at,
                    sa.and_(QueueRow.submitted_at == at, QueueRow.experiment_id < entry_id),
                )
            )
        query = query.order_by(QueueRow.submitted_at.desc(), QueueRow.experiment_id.desc())
        with self._database.reading() as session:
            found = [entry_of(row) for row in session.scalars(query.limit(limit + 1))]
        more = len(found) > limit
        return Page(tuple(found[:limit]), page_cursor(found[limit - 1]) if more else None)

    def entries(self, ids: Collection[str]) -> dict[str, Entry]:
        """Experiments by id; without those that there are not."""
        query = sa.select(QueueRow).where(QueueRow.experiment_id.in_(ids))
        with self._database.reading() as session:
            found = [entry_of(row) for row in session.scalars(query)]
        return {entry.id: entry for entry in found}

    def waiting(self) -> list[Entry]:
        """All that wait for their turn."""
        # Columns and not objects: there may be ten thousand.
        query = sa.select(*QueueRow.__table__.columns).where(QueueRow.state == QueueState.QUEUED)
        with self._database.reading() as session:
            return [entry_of(row) for row in session.execute(query)]

    def counts(self) -> dict[str, int]:
        """State -> number of experiments."""
        query = sa.select(QueueRow.state, sa.func.count()).group_by(QueueRow.state)
        with self._database.reading() as session:
            return {row[0]: row[1] for row in session.execute(query)}

    # Parts

    def _retried(
        self,
        entry_id: str,
        change: Callable[[Session, Entry], Entry],
        versions: Set[int] | None,
    ) -> Entry:
        for _ in range(TRIES):
            try:
                with self._database.session() as session:
                    entry = find(session, entry_id)
                    if versions is not None and entry.version not in versions:
                        wanted = " or ".join(map(str, sorted(versions))) or "none that there is"
                        raise ChangedError(
                            f"experiment {entry.name}: has been changed meanwhile, got version "
                            f"{entry.version} instead of {wanted}; read it again, and repeat the "
                            "change if you still want it"
                        )
                    return change(session, entry)
            except StaleEntryError:
                continue
        raise ActiveError(f"experiment {entry_id}: others change it all the time; try again")

    def _check_queued(self, session: Session, submitter: Submitter) -> None:
        for (what, name), limit in limits(self.policy, submitter).items():
            count = count_queued(session, self._database, what, name)
            if count >= limit:
                raise QuotaError(
                    f"quota: {what} {name} has {count} experiments that wait or run; "
                    f"{limit} are allowed"
                )

    def _retry_trials(self, session: Session, entry: Entry) -> None:
        session.execute(
            sa.update(TrialRow)
            .where(
                TrialRow.experiment_id == entry.id,
                TrialRow.state.in_([TrialState.FAILED.value, TrialState.CANCELLED.value]),
            )
            .values(
                state=TrialState.PENDING.value, version=TrialRow.version + 1, failure=None,
                message=None, ended_at=None,
            )
        )  # fmt: skip


def limits(policy: Policy, submitter: Submitter) -> dict[tuple[str, str], int]:
    """Of how many experiments may wait or run: ("user" or "project", name) -> how many."""
    quotas = policy.quotas
    found = {
        ("user", submitter.user): quotas.of_user(submitter.user).queued,
        ("project", submitter.project): quotas.of_project(submitter.project).queued,
    }
    return {who: limit for who, limit in found.items() if limit is not None}


def count_queued(session: Session, database: Database, what: str, name: str) -> int:
    """How many experiments of a user or project wait or run; nobody else adds any meanwhile."""
    if database.is_postgresql:
        # One at a time: two that count together would both find room for one.
        lock = sa.func.hashtextextended(f"focus-lab {what} {name}", 0)
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    column = QueueRow.user if what == "user" else QueueRow.project
    count = session.scalar(
        sa.select(sa.func.count())
        .select_from(QueueRow)
        .where(column == name, QueueRow.state.not_in([s.value for s in _AT_REST]))
    )
    return count or 0


def remember(session: Session, taken: Sequence[tuple[Submission, str]], now: datetime) -> None:
    """Keep the keys of requests, with the ids of what they have made; forget old ones."""
    values = [
        {
            "user": one.submitter.user, "key": one.key, "fingerprint": one.request,
            "experiment_id": experiment_id, "created_at": now,
        }
        for one, experiment_id in taken
        if one.key is not None
    ]  # fmt: skip
    if not values:
        return
    # Only now: what a transaction writes before it looks at an entry would give its event
    # a place before events that it has seen.
    session.execute(
        sa.delete(IdempotencyRow)
        .where(
            IdempotencyRow.user.in_({value["user"] for value in values}),
            IdempotencyRow.created_at <= now - KEY_LIFE,
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(IdempotencyRow.insert(), values)


_AT_REST = TERMINAL | {QueueState.PAUSED}
