"""The store: the truth about the life cycle of experiments and trials (SQLite or PostgreSQL)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from focus_lab.errors import StoreError
from focus_lab.lab.database import Database, now, rows, storable, utc
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.states import TRANSITIONS, TrialState
from focus_lab.lab.tables import ExperimentRow, QueueRow, TrialRow
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan, PlannedTrial

_FAILURE_LENGTH = 64
"""What the table has room for; PostgreSQL, unlike SQLite, insists."""


@dataclass(frozen=True)
class Experiment:
    """An experiment as the store knows it. The stored spec is read tolerantly: as data."""

    id: str
    name: str
    spec: dict[str, Any]
    folder: Path
    tracking_id: str | None
    created_at: datetime


@dataclass(frozen=True)
class Trial:
    """A trial as the store knew it at `version`."""

    id: str
    experiment_id: str
    fingerprint: str
    cell: str
    seed: int
    position: int
    """Its place in the newest plan that has it."""
    overrides: dict[str, Any]
    spec: dict[str, Any]
    state: TrialState
    version: int
    attempts: int
    failure: str | None
    message: str | None
    tracking_run_id: str | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def name(self) -> str:
        """Cell and seed: readable, and unique within a plan."""
        return f"{self.cell}-seed{self.seed}"


class LeaseHeldError(StoreError):
    """Another process carries the experiment out; wait for it, or end it."""


class StaleTrialError(StoreError):
    """The trial was changed by another process; read it again."""


class Store:
    """Experiments and trials in a database.

    Args:
        database: where they are, or its URL.
        create: whether the missing SQLite file of a URL is made.

    Raises:
        StoreError: the URL's database cannot be used.
    """

    def __init__(self, database: Database | str, *, create: bool = True) -> None:
        if isinstance(database, str):
            database = Database(database, create=create)
        self.database = database
        self.url = database.url

    def close(self) -> None:
        """Release the database."""
        self.database.close()

    # Experiments

    def open(self, spec: ExperimentSpec, folder: Path) -> Experiment:
        """The experiment of this name as it is; made, without trials, when there is none."""
        named = sa.select(ExperimentRow).where(ExperimentRow.name == spec.name)
        with self.database.session() as session:
            row = session.scalar(named)
            if row is None:
                row = ExperimentRow(id=uuid.uuid4().hex, name=spec.name, created_at=now())
                row.spec, row.folder = spec.model_dump(mode="json"), str(folder)
                try:
                    with session.begin_nested():
                        session.add(row)
                except sa.exc.IntegrityError:
                    # Somebody else made it at the same moment.
                    row = session.scalars(named).one()
            return _experiment(row)

    def record(
        self, spec: ExperimentSpec, plan: Plan, folder: Path, retried: Sequence[str] = ()
    ) -> Experiment:
        """Record an experiment and its plan; the same name continues it.

        Trials that the plan still has keep their state, new ones are added, others are no longer
        planned. Failed ones become pending again. Whoever carries the experiment out holds its
        lease meanwhile, so that nobody changes the plan under a running driver.

        Args:
            spec: the experiment.
            plan: its whole plan.
            folder: where its files are.
            retried: cells whose failed trials become pending again; empty means all.
        """
        with self.database.session() as session:
            named = sa.select(ExperimentRow).where(ExperimentRow.name == spec.name)
            return self.record_in(session, session.scalar(named), spec, plan, folder, retried)

    def record_in(
        self,
        session: Session,
        row: ExperimentRow | None,
        spec: ExperimentSpec,
        plan: Plan,
        folder: Path,
        retried: Sequence[str] = (),
    ) -> Experiment:
        """As `record`, within a transaction of the caller, who has looked up the experiment.

        Raises:
            sqlalchemy.exc.IntegrityError: somebody else made the experiment at the same moment.
        """
        if row is None:
            made, trials = new_rows(spec, plan, folder)
            session.execute(ExperimentRow.insert(), made)
            session.execute(TrialRow.insert(), trials)
            return _experiment(ExperimentRow(**made))
        row.spec, row.folder = spec.model_dump(mode="json"), str(folder)
        of_experiment = sa.select(TrialRow).where(TrialRow.experiment_id == row.id)
        known = {trial.fingerprint: trial for trial in session.scalars(of_experiment)}
        for old in known.values():
            old.planned = False
        new: list[dict[str, Any]] = []
        for position, planned in enumerate(plan.trials):
            trial = known.get(planned.fingerprint)
            if trial is None:
                new.append(_new_trial(row.id, position, planned))
                continue
            for name, value in _trial_values(position, planned).items():
                setattr(trial, name, value)
            if trial.state == TrialState.FAILED and (not retried or trial.cell in retried):
                trial.state, trial.version = TrialState.PENDING, trial.version + 1
                trial.failure = trial.message = trial.ended_at = None
        if new:
            session.execute(TrialRow.insert(), new)
        return _experiment(row)

    def experiments(self) -> list[Experiment]:
        """All experiments, newest first."""
        with self.database.reading() as session:
            rows = session.scalars(
                sa.select(ExperimentRow).order_by(ExperimentRow.created_at.desc())
            )
            return [_experiment(row) for row in rows]

    def experiment(self, name: str) -> Experiment:
        """An experiment by id or name, the id first.

        Raises:
            StoreError: there is none.
        """
        with self.database.reading() as session:
            row = session.get(ExperimentRow, name) or session.scalar(
                sa.select(ExperimentRow).where(ExperimentRow.name == name)
            )
            if row is None:
                names = session.scalars(sa.select(ExperimentRow.name)).all()
                raise StoreError(
                    f"experiment: no such name or id, got {name!r}; "
                    f"known are {', '.join(names) or 'none yet'}"
                )
            return _experiment(row)

    def set_tracking_id(self, experiment_id: str, tracking_id: str) -> None:
        """Remember the tracker's id of an experiment."""
        with self.database.session() as session:
            session.execute(
                sa.update(ExperimentRow)
                .where(ExperimentRow.id == experiment_id)
                .values(tracking_id=tracking_id)
            )

    def queue_state(self, experiment_id: str) -> QueueState | None:
        """Where the experiment is in a service's queue; None when it was never submitted to one."""
        query = sa.select(QueueRow.state).where(QueueRow.experiment_id == experiment_id)
        with self.database.reading() as session:
            state = session.scalar(query)
        return None if state is None else QueueState(state)

    # Leases

    def take_lease(self, experiment_id: str, owner: str, seconds: float, dead: set[str]) -> None:
        """Become the one driver of an experiment.

        Args:
            experiment_id: the experiment.
            owner: names this process, uniquely.
            seconds: how long the lease lasts unless renewed.
            dead: owners known to have ended: their leases do not count.

        Raises:
            LeaseHeldError: another process holds an unexpired lease.
        """
        with self.database.session() as session:
            now = self.database.now(session)
            free = sa.or_(
                ExperimentRow.lease_owner.is_(None),
                ExperimentRow.lease_owner == owner,
                ExperimentRow.lease_owner.in_(dead),
                ExperimentRow.lease_expires_at < now,
            )
            changed = session.execute(
                sa.update(ExperimentRow)
                .where(ExperimentRow.id == experiment_id, free)
                .values(lease_owner=owner, lease_expires_at=now + timedelta(seconds=seconds))
            )
            if not rows(changed):
                holder = self.lease_owner(experiment_id)
                raise LeaseHeldError(
                    f"experiment: another process carries it out, got {holder}; "
                    "wait for it or end it, then run the same command"
                )

    def lease_owner(self, experiment_id: str) -> str | None:
        """Who holds the experiment's lease."""
        with self.database.reading() as session:
            return session.scalar(
                sa.select(ExperimentRow.lease_owner).where(ExperimentRow.id == experiment_id)
            )

    def has_lease(self, experiment_id: str) -> bool:
        """Whether somebody carries the experiment out, as far as its lease says."""
        with self.database.reading() as session:
            expires = utc(
                session.scalar(
                    sa.select(ExperimentRow.lease_expires_at).where(
                        ExperimentRow.id == experiment_id, ExperimentRow.lease_owner.is_not(None)
                    )
                )
            )
            return expires is not None and expires > self.database.now(session)

    def drop_lease(self, experiment_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still holds it."""
        with self.database.session() as session:
            session.execute(
                sa.update(ExperimentRow)
                .where(ExperimentRow.id == experiment_id, ExperimentRow.lease_owner == owner)
                .values(lease_owner=None, lease_expires_at=None)
            )

    # Trials

    def trials(self, experiment_id: str, *, planned_only: bool = True) -> list[Trial]:
        """Trials in the order of the plan."""
        query = sa.select(TrialRow).where(TrialRow.experiment_id == experiment_id)
        if planned_only:
            query = query.where(TrialRow.planned)
        with self.database.reading() as session:
            return [_trial(row) for row in session.scalars(query.order_by(TrialRow.position))]

    def trial_counts(self, experiment_ids: Sequence[str]) -> dict[str, dict[TrialState, int]]:
        """Experiment id -> state -> number of planned trials; absent where there are none."""
        query = (
            sa.select(TrialRow.experiment_id, TrialRow.state, sa.func.count())
            .where(TrialRow.planned, TrialRow.experiment_id.in_(experiment_ids))
            .group_by(TrialRow.experiment_id, TrialRow.state)
        )
        counts: dict[str, dict[TrialState, int]] = {}
        with self.database.reading() as session:
            for experiment_id, state, count in session.execute(query):
                counts.setdefault(experiment_id, {})[TrialState(state)] = count
        return counts

    def move(
        self,
        trial: Trial,
        state: TrialState,
        *,
        failure: str | None = None,
        message: str | None = None,
    ) -> Trial:
        """Change a trial's state by compare-and-set on what the caller last saw.

        Raises:
            StaleTrialError: somebody else changed it in between.
            ValueError: the life cycle does not allow it.
        """
        if state not in TRANSITIONS[trial.state]:
            raise ValueError(f"{trial.name}: cannot go from {trial.state} to {state}")
        moment = now()
        values: dict[str, Any] = {
            "state": state,
            "version": trial.version + 1,
            "failure": failure and storable(failure)[:_FAILURE_LENGTH],
            "message": message and storable(message),
            "ended_at": moment if state.is_terminal else None,
        }
        if state is TrialState.RUNNING:
            values |= {"attempts": trial.attempts + 1, "started_at": trial.started_at or moment}
        with self.database.session() as session:
            changed = session.execute(
                sa.update(TrialRow)
                .where(
                    TrialRow.id == trial.id,
                    TrialRow.state == trial.state,
                    TrialRow.version == trial.version,
                )
                .values(**values)
            )
            if not rows(changed):
                raise StaleTrialError(
                    f"trial {trial.name}: another process changed it, got version {trial.version}; "
                    "run the same command again"
                )
        return replace(trial, **values)

    def set_tracking_run(self, trial: Trial, run_id: str) -> Trial:
        """Remember the tracker's run of a trial."""
        with self.database.session() as session:
            session.execute(
                sa.update(TrialRow).where(TrialRow.id == trial.id).values(tracking_run_id=run_id)
            )
        return replace(trial, tracking_run_id=run_id)


def new_rows(
    spec: ExperimentSpec, plan: Plan, folder: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Values of a new experiment and of its trials."""
    made = {
        "id": uuid.uuid4().hex, "name": spec.name, "created_at": now(),
        "spec": spec.model_dump(mode="json"), "folder": str(folder),
    }  # fmt: skip
    return made, [_new_trial(str(made["id"]), *one) for one in enumerate(plan.trials)]


def _new_trial(experiment_id: str, position: int, planned: PlannedTrial) -> dict[str, Any]:
    return _trial_values(position, planned) | {
        "id": uuid.uuid4().hex, "experiment_id": experiment_id, "fingerprint": planned.fingerprint,
        "state": TrialState.PENDING.value, "version": 0, "attempts": 0,
    }  # fmt: skip


def _trial_values(position: int, planned: PlannedTrial) -> dict[str, Any]:
    """Compute may differ from the last time; nothing else can, by the fingerprint."""
    return {
        "cell": planned.cell, "seed": planned.seed, "position": position,
        "overrides": planned.overrides, "planned": True,
        "spec": planned.content,
    }  # fmt: skip


def _experiment(row: ExperimentRow) -> Experiment:
    created = utc(row.created_at)
    assert created is not None
    return Experiment(row.id, row.name, row.spec, Path(row.folder), row.tracking_id, created)


def _trial(row: TrialRow) -> Trial:
    return Trial(
        id=row.id,
        experiment_id=row.experiment_id,
        fingerprint=row.fingerprint,
        cell=row.cell,
        seed=row.seed,
        position=row.position,
        overrides=row.overrides,
        spec=row.spec,
        state=TrialState(row.state),
        version=row.version,
        attempts=row.attempts,
        failure=row.failure,
        message=row.message,
        tracking_run_id=row.tracking_run_id,
        started_at=utc(row.started_at),
        ended_at=utc(row.ended_at),
    )
