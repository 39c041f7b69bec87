"""The store: the truth about the life cycle of experiments and trials (SQLite or PostgreSQL)."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.orm import Session

from focus_lab.errors import StoreError, StoreUnreachableError
from focus_lab.lab.states import TRANSITIONS, TrialState
from focus_lab.lab.tables import VERSION_TABLE, ExperimentRow, TrialRow
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import Plan

_BUSY_MS = 5000
"""How long SQLite waits for another writer, in milliseconds."""

_FAILURE_LENGTH = 64
"""What the table has room for; PostgreSQL, unlike SQLite, insists."""

_MIGRATION_LOCK = 7_210_653_114
"""Who brings a PostgreSQL store up to date holds this lock; any number that nobody else uses."""


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


class NoStoreError(StoreError):
    """There is no store yet; `focus-lab sweep FILE` makes one."""


class LeaseHeldError(StoreError):
    """Another process carries the experiment out; wait for it, or end it."""


class StaleTrialError(StoreError):
    """The trial was changed by another process; read it again."""


class Store:
    """Experiments and trials in a database.

    Args:
        url: SQLAlchemy URL, for example `sqlite:///runs/lab.db`, or
            `postgresql+psycopg://user@host/database` with the password in PGPASSWORD or in the file
            that PGPASSFILE names.
        create: whether a missing SQLite file is made.

    Raises:
        NoStoreError: the file is missing, and is not to be made.
        StoreError: the database cannot be opened, is locked, or belongs to a newer focus_lab.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        try:
            self._engine = sa.create_engine(url, pool_pre_ping=True)
            self.url = self._engine.url.render_as_string(hide_password=True)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _configure_sqlite)
        except (sa.exc.ArgumentError, ImportError) as error:
            shown = re.sub(r"://[^/]*@", "://***@", url)
            if isinstance(error, ImportError) and re.match(r"postgresql(\+psycopg)?:", url):
                raise StoreError(
                    f"--store: PostgreSQL needs its driver, got {error}; "
                    "install focus-lab[postgresql]"
                ) from error
            raise StoreError(
                f"--store: is not a usable database URL, got {shown!r}; "
                "for example sqlite:///runs/lab.db"
            ) from error
        file = self._engine.url.database if self._engine.dialect.name == "sqlite" else None
        if file and not create and not Path(file).exists():
            raise NoStoreError(
                f"store {self.url}: there is none yet; run `focus-lab sweep FILE` first, or name "
                "its place with --out DIR or --store"
            )
        try:
            with self._explained(), self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    # Processes of several machines may open a new store at the same moment.
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                config = Config()
                config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
                config.attributes["connection"] = connection
                _rename_old_tables(connection)
                command.upgrade(config, "head")
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    # Experiments

    def open(self, spec: ExperimentSpec, folder: Path) -> Experiment:
        """The experiment of this name as it is; made, without trials, when there is none."""
        with self._session() as session:
            named = sa.select(ExperimentRow).where(ExperimentRow.name == spec.name)
            row = session.scalar(named)
            if row is None:
                row = ExperimentRow(id=uuid.uuid4().hex, name=spec.name, created_at=_now())
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
        experiment_id = self.open(spec, folder).id
        with self._session() as session:
            row = session.get_one(ExperimentRow, experiment_id)
            row.spec, row.folder = spec.model_dump(mode="json"), str(folder)
            known = {
                trial.fingerprint: trial
                for trial in session.scalars(
                    sa.select(TrialRow).where(TrialRow.experiment_id == row.id)
                )
            }
            for old in known.values():
                old.planned = False
            for position, planned in enumerate(plan.trials):
                trial = known.get(planned.fingerprint) or TrialRow(
                    id=uuid.uuid4().hex,
                    experiment_id=row.id,
                    fingerprint=planned.fingerprint,
                    state=TrialState.PENDING,
                    version=0,
                    attempts=0,
                )
                session.add(trial)
                trial.cell, trial.seed, trial.position = planned.cell, planned.seed, position
                trial.overrides, trial.planned = planned.overrides, True
                # Compute may differ from the last time; nothing else can, by the fingerprint.
                trial.spec = planned.spec.model_dump(mode="json")
                if trial.state == TrialState.FAILED and (not retried or trial.cell in retried):
                    trial.state, trial.version = TrialState.PENDING, trial.version + 1
                    trial.failure = trial.message = trial.ended_at = None
            return _experiment(row)

    def experiments(self) -> list[Experiment]:
        """All experiments, newest first."""
        with self._session() as session:
            rows = session.scalars(
                sa.select(ExperimentRow).order_by(ExperimentRow.created_at.desc())
            )
            return [_experiment(row) for row in rows]

    def experiment(self, name: str) -> Experiment:
        """An experiment by name or id.

        Raises:
            StoreError: there is none.
        """
        with self._session() as session:
            row = session.scalar(
                sa.select(ExperimentRow).where(
                    sa.or_(ExperimentRow.name == name, ExperimentRow.id == name)
                )
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
        with self._session() as session:
            session.execute(
                sa.update(ExperimentRow)
                .where(ExperimentRow.id == experiment_id)
                .values(tracking_id=tracking_id)
            )

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
        with self._session() as session:
            now = self._now(session)
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
            if not _rows(changed):
                holder = self.lease_owner(experiment_id)
                raise LeaseHeldError(
                    f"experiment: another process carries it out, got {holder}; "
                    "wait for it or end it, then run the same command"
                )

    def lease_owner(self, experiment_id: str) -> str | None:
        """Who holds the experiment's lease."""
        with self._session() as session:
            return session.scalar(
                sa.select(ExperimentRow.lease_owner).where(ExperimentRow.id == experiment_id)
            )

    def drop_lease(self, experiment_id: str, owner: str) -> None:
        """Give the lease back, if `owner` still holds it."""
        with self._session() as session:
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
        with self._session() as session:
            return [_trial(row) for row in session.scalars(query.order_by(TrialRow.position))]

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
        now = _now()
        values: dict[str, Any] = {
            "state": state,
            "version": trial.version + 1,
            "failure": failure and _storable(failure)[:_FAILURE_LENGTH],
            "message": message and _storable(message),
            "ended_at": now if state.is_terminal else None,
        }
        if state is TrialState.RUNNING:
            values |= {"attempts": trial.attempts + 1, "started_at": trial.started_at or now}
        with self._session() as session:
            changed = session.execute(
                sa.update(TrialRow)
                .where(
                    TrialRow.id == trial.id,
                    TrialRow.state == trial.state,
                    TrialRow.version == trial.version,
                )
                .values(**values)
            )
            if not _rows(changed):
                raise StaleTrialError(
                    f"trial {trial.name}: another process changed it, got version {trial.version}; "
                    "run the same command again"
                )
        return replace(trial, **values)

    def set_tracking_run(self, trial: Trial, run_id: str) -> Trial:
        """Remember the tracker's run of a trial."""
        with self._session() as session:
            session.execute(
                sa.update(TrialRow).where(TrialRow.id == trial.id).values(tracking_run_id=run_id)
            )
        return replace(trial, tracking_run_id=run_id)

    def _now(self, session: Session) -> datetime:
        """The clock that leases run by: a server's own, for the machines' clocks may differ."""
        if self._engine.dialect.name != "postgresql":
            return _now()
        clock: sa.Function[datetime] = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))
        return session.execute(sa.select(clock)).scalar_one()

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        with self._explained(), Session(self._engine) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except CommandError as error:
            raise StoreError(
                f"store {self.url}: was made by a newer focus_lab, got {error}; "
                "upgrade focus_lab or choose another --store"
            ) from error
        except (sa.exc.DatabaseError, sa.exc.TimeoutError) as error:
            got = " ".join(str(getattr(error, "orig", error)).split())
            if self._engine.dialect.name != "sqlite":
                problem = "cannot be used"
                remedy = (
                    "check that its server runs and may be reached, that user, password "
                    "(PGPASSWORD) and database are right and the user may make tables"
                )
            elif isinstance(error, sa.exc.OperationalError):
                problem = "cannot be used"
                remedy = "close the process that locks it, check the path"
            else:
                problem, remedy = "is not a focus_lab store", ""
            remedy += ", or choose another --store" if remedy else "choose another --store"
            kind = StoreUnreachableError if _may_come_back(error) else StoreError
            raise kind(f"store {self.url}: {problem}, got {got}; {remedy}") from error


def _may_come_back(error: Exception) -> bool:
    """Whether a database that fails like this may answer later: it is locked, away or starting."""
    return isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError
    ) or (isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated)


def _rename_old_tables(connection: sa.Connection) -> None:
    """Early stores had tables named like MLflow's, which may share a database with ours."""
    found = set(sa.inspect(connection).get_table_names())
    if {"alembic_version", "experiments", "trials"} <= found and VERSION_TABLE not in found:
        renamed = {
            "alembic_version": VERSION_TABLE,
            "experiments": ExperimentRow.__tablename__,
            "trials": TrialRow.__tablename__,
        }
        for old, new in renamed.items():
            connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))


def _configure_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _rows(result: Any) -> int:
    return int(result.rowcount)


def _storable(text: str) -> str:
    """What every database takes: PostgreSQL refuses zero bytes, and no driver has half characters.

    Names of broken files bring them into messages.
    """
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _now() -> datetime:
    return datetime.now(UTC)


def _utc(moment: datetime | None) -> datetime | None:
    # SQLite forgets the zone; all moments are stored in UTC.
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _experiment(row: ExperimentRow) -> Experiment:
    created = _utc(row.created_at)
    assert created is not None
    return Experiment(row.id, row.name, row.spec, Path(row.folder), row.tracking_id, created)


def _trial(row: TrialRow) -> Trial:
    return Trial(
        id=row.id,
        experiment_id=row.experiment_id,
        fingerprint=row.fingerprint,
        cell=row.cell,
        seed=row.seed,
        overrides=row.overrides,
        spec=row.spec,
        state=TrialState(row.state),
        version=row.version,
        attempts=row.attempts,
        failure=row.failure,
        message=row.message,
        tracking_run_id=row.tracking_run_id,
        started_at=_utc(row.started_at),
        ended_at=_utc(row.ended_at),
    )
