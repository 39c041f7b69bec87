"""The database of the store: its engine, its migrations, and its troubles in sentences."""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from pydantic_core import to_json
from sqlalchemy.orm import Session

from focus_lab.errors import StoreError, StoreUnreachableError
from focus_lab.lab.tables import VERSION_TABLE, ExperimentRow, TrialRow

_BUSY_MS = 5000
"""How long SQLite waits for another writer, in milliseconds."""

_MIGRATION_LOCK = 7_210_653_114
"""Who brings a PostgreSQL store up to date holds this lock; any number that nobody else uses."""

_IDLE_S = 60
"""A process that is frozen within a transaction keeps its locks no longer than this."""

_WRITES = "focus_lab_writes"

_PATIENCE = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""For libpq, in seconds, the second in milliseconds: how soon a server whose cable is pulled is
given up. Otherwise whoever waits for its answer would do so for a quarter of an hour."""


class NoStoreError(StoreError):
    """There is no store yet; `focus-lab sweep FILE` makes one."""


class OldStoreError(StoreError):
    """The store's tables are of an older focus_lab; run `focus-lab migrate`."""


class Database:
    """SQLite or PostgreSQL.

    Args:
        url: SQLAlchemy URL, for example `sqlite:///runs/lab.db`, or
            `postgresql+psycopg://user@host/database` with the password in PGPASSWORD or in the file
            that PGPASSFILE names.
        create: whether a missing SQLite file is made.
        migrate: whether older tables are brought up to date; else that is refused. Missing ones are
            made in any case. None migrates a SQLite file, and not a server's database, which
            others may use.
        connections: how many may be open at once.

    Raises:
        NoStoreError: the file is missing, and is not to be made.
        OldStoreError: the tables are not up to date, and are not to be brought there.
        StoreError: the database cannot be opened, is locked, or belongs to a newer focus_lab.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = True,
        migrate: bool | None = None,
        connections: int = 5,
    ) -> None:
        try:
            self._engine = sa.create_engine(
                url,
                pool_pre_ping=True,
                pool_size=connections,
                json_serializer=_as_json,
                connect_args=_patience(sa.make_url(url)),
            )
            self.url = self._engine.url.render_as_string(hide_password=True)
            self.is_postgresql = self._engine.dialect.name == "postgresql"
            # SQLite lets those who wait for it in by chance: threads of one process take turns.
            self._turn = contextlib.nullcontext() if self.is_postgresql else threading.Lock()
            if self.is_postgresql:
                sa.event.listen(self._engine, "connect", _configure_postgresql)
            else:
                sa.event.listen(self._engine, "connect", _configure_sqlite)
                sa.event.listen(self._engine, "begin", _begin_sqlite)
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
        file = None if self.is_postgresql else self._engine.url.database
        if file and not create and not Path(file).exists():
            raise NoStoreError(
                f"store {self.url}: there is none yet; run `focus-lab sweep FILE` first, or name "
                "its place with --out DIR or --store"
            )
        if migrate is None:
            migrate = not self.is_postgresql
        try:
            if migrate or self._revision() is None:
                self.migrate()
            elif not self.is_current():
                self._check_known()
                raise OldStoreError(
                    f"store {self.url}: its tables are not those of this focus_lab; back it up and "
                    "run `focus-lab migrate`"
                )
        except StoreError:
            self.close()
            raise

    def migrate(self) -> None:
        """Make the tables, or bring them up to date."""
        with self._explained(), self._writing().begin() as connection:
            if self.is_postgresql:
                # Processes of several machines may open a new store at the same moment.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config = _alembic()
            config.attributes["connection"] = connection
            _rename_old_tables(connection)
            command.upgrade(config, "head")

    def is_current(self) -> bool:
        """Whether the tables are those of this focus_lab."""
        return self._revision() == _newest()

    def _revision(self) -> str | None:
        with self._explained(), self._engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return context.get_current_revision()

    def _check_known(self) -> None:
        """Say so where the tables are those of a newer focus_lab: it cannot migrate them."""
        with self._explained():
            ScriptDirectory.from_config(_alembic()).get_revision(self._revision() or "base")

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction that may write; SQLite lets one in at a time.

        Raises:
            StoreError: the database fails.
        """
        with self._turn, self._explained(), Session(self._writing()) as session, session.begin():
            yield session

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; it never waits for a writer.

        Raises:
            StoreError: the database fails.
        """
        with self._explained(), Session(self._engine) as session, session.begin():
            yield session

    def now(self, session: Session) -> datetime:
        """The clock that leases run by: a server's own, for the machines' clocks may differ."""
        if not self.is_postgresql:
            return now()
        return session.execute(sa.select(self.clock())).scalar_one()

    def clock(self) -> sa.ColumnElement[datetime]:
        """The same clock, as a part of a statement."""
        kind = sa.DateTime(timezone=True)
        if self.is_postgresql:
            return sa.func.clock_timestamp(type_=kind)
        return sa.literal(now(), kind)

    def _writing(self) -> sa.Engine:
        return self._engine.execution_options(**{_WRITES: True})

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
            if self.is_postgresql:
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


def now() -> datetime:
    """This machine's clock; all moments are stored in UTC."""
    return datetime.now(UTC)


def utc(moment: datetime | None) -> datetime | None:
    """A moment from the database with its zone, which SQLite forgets."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def rows(result: Any) -> int:
    """How many rows a statement has changed."""
    return int(result.rowcount)


def storable(text: str) -> str:
    """What every database takes: PostgreSQL refuses zero bytes, and no driver has half characters.

    Names of broken files bring them into messages.
    """
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _as_json(value: Any) -> str:
    # Several times as fast as Python's own; numbers that JSON does not have become null.
    return to_json(value).decode()


@functools.cache
def _newest() -> str | None:
    # To read all migrations takes longer than to ask the database.
    return ScriptDirectory.from_config(_alembic()).get_current_head()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


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


def _patience(url: sa.URL) -> dict[str, int]:
    """What a connection is opened with, unless its URL says otherwise."""
    if url.drivername not in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2"):
        return {}
    return {name: value for name, value in _PATIENCE.items() if name not in url.query}


def _configure_sqlite(connection: Any, _: object) -> None:
    # Transactions are begun below: Python's own way leaves reads out of them.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _configure_postgresql(connection: Any, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{_IDLE_S}s'")
    connection.commit()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A reader that begins to write would be refused at once when another has written in between.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
