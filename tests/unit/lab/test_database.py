"""The database of the store: fresh, of an older focus_lab, and what is said of each."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import postgresql as servers
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from focus_lab.errors import StoreError, StoreUnreachableError
from focus_lab.lab import database as database_module
from focus_lab.lab.database import Database, NoStoreError, OldStoreError, _alembic
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import QueueState
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.states import TrialState
from focus_lab.lab.store import Store
from focus_lab.lab.tables import VERSION_TABLE, Base
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tables(database: Database) -> set[str]:
    return set(sa.inspect(database._engine).get_table_names())


def of_the_first_revision(url: str, spec: ExperimentSpec, folder: Path) -> None:
    """A store as the first focus_lab left it: an experiment, of whose two trials one is done."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        old = sa.MetaData()
        old.reflect(connection)
        at = sa.func.current_timestamp()
        connection.execute(
            old.tables["focus_lab_experiments"].insert(),
            {
                "id": "1" * 32, "name": spec.name, "spec": spec.model_dump(mode="json"),
                "folder": str(folder), "tracking_id": "7",
            } | {"created_at": connection.scalar(sa.select(at))},
        )  # fmt: skip
        for number, planned in enumerate(plan(spec).trials):
            connection.execute(
                old.tables["focus_lab_trials"].insert(),
                {
                    "id": str(number) * 32, "experiment_id": "1" * 32,
                    "fingerprint": planned.fingerprint, "cell": planned.cell,
                    "seed": planned.seed, "overrides": planned.overrides,
                    "spec": planned.spec.model_dump(mode="json"), "position": number,
                    "planned": True, "state": "PENDING" if number else "SUCCEEDED",
                    "version": 2, "attempts": 1,
                },
            )  # fmt: skip
    engine.dispose()


@pytest.fixture
def spec(tiny_experiment: Callable[..., ExperimentSpec]) -> ExperimentSpec:
    return tiny_experiment(sweep={"axes": {"model.token_selection.keep_ratio": [0.2, 0.5]}})


@pytest.mark.slow
def test_a_connection_that_is_cut_ends_soon_unless_the_url_says_otherwise(
    postgresql: servers.Schemas,
) -> None:
    def parameters(url: str) -> dict[str, str]:
        with contextlib.closing(Database(url)) as database, database._engine.connect() as opened:
            found: dict[str, str] = opened.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
            return found

    url = postgresql.new()
    found = parameters(url)
    assert (found["connect_timeout"], found["tcp_user_timeout"]) == ("5", "15000")
    assert (found["keepalives"], found["keepalives_idle"]) == ("1", "10")
    own = sa.make_url(url).update_query_dict({"tcp_user_timeout": "700", "keepalives": "0"})
    found = parameters(own.render_as_string(hide_password=False))
    assert (found["tcp_user_timeout"], found["keepalives"]) == ("700", "0")
    assert found["connect_timeout"] == "5"


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        with pytest.raises(StoreUnreachableError):
            Database(f"postgresql+psycopg://ann@127.0.0.1:{silent.getsockname()[1]}/lab")
        assert time.monotonic() - begun < 20


def test_a_fresh_store_has_the_tables_that_the_code_describes(store_url: str) -> None:
    database = Database(store_url)
    # SQLite has no types to compare.
    compared = {"version_table": VERSION_TABLE, "compare_type": database.is_postgresql}
    assert database.is_current()
    with database._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=compared)
        assert compare_metadata(context, Base.metadata) == []
    assert tables(database) == {*Base.metadata.tables, VERSION_TABLE}
    database.migrate()  # again does nothing
    database.close()
    Database(store_url, migrate=False).close()


def test_the_migrations_are_read_once_to_know_the_newest(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(store_url)
    assert database.is_current()
    monkeypatch.delattr("focus_lab.lab.database.ScriptDirectory")
    assert database.is_current()
    database.close()


def test_numbers_of_events_never_come_again(store_url: str) -> None:
    # A reader goes on from the last one it saw, even if it has been cleared away since.
    database = Database(store_url)
    insert = sa.text(
        'INSERT INTO focus_lab_events ("transaction", at, kind, actor, data) '
        "VALUES (0, CURRENT_TIMESTAMP, 'k', 'a', '{}')"
    )
    with database.session() as session:
        session.execute(insert)
        session.execute(insert)
        session.execute(sa.text("DELETE FROM focus_lab_events"))
        session.execute(insert)
        assert session.scalar(sa.text("SELECT id FROM focus_lab_events")) == 3
    database.close()


def test_a_store_of_an_older_focus_lab_is_left_alone_until_it_is_migrated(
    store_url: str, spec: ExperimentSpec, tmp_path: Path
) -> None:
    of_the_first_revision(store_url, spec, tmp_path)
    for _ in range(2):
        with pytest.raises(OldStoreError, match="back it up and run `focus-lab migrate`"):
            Database(store_url, migrate=False)
    engine = sa.create_engine(store_url)
    assert "focus_lab_queue" not in sa.inspect(engine).get_table_names()
    engine.dispose()
    if store_url.startswith("postgresql"):
        # Others may use a server's database: nobody migrates it in passing.
        with pytest.raises(OldStoreError):
            Store(store_url)
    Database(store_url, migrate=True).close()
    Database(store_url, migrate=False).close()


def test_what_an_older_focus_lab_has_recorded_is_kept_and_may_be_submitted(
    store_url: str, spec: ExperimentSpec, tmp_path: Path
) -> None:
    of_the_first_revision(store_url, spec, tmp_path)
    Database(store_url, migrate=True).close()
    store = Store(store_url)
    made = store.experiment("tiny")
    assert (made.id, made.folder, made.tracking_id) == ("1" * 32, tmp_path, "7")
    assert json.loads(json.dumps(made.spec)) == spec.model_dump(mode="json")
    states = [TrialState.SUCCEEDED, TrialState.PENDING]
    assert [trial.state for trial in store.trials(made.id)] == states
    queue = Queue(store)
    entry, is_new = queue.submit(spec, plan(spec), tmp_path, Submitter("alice"))
    assert is_new
    assert (entry.id, entry.state, entry.trials) == (made.id, QueueState.QUEUED, 2)
    assert [trial.state for trial in store.trials(made.id)] == states
    store.close()


def test_a_store_may_go_back_and_forth(
    store_url: str, spec: ExperimentSpec, tmp_path: Path
) -> None:
    database = Database(store_url)
    store = Store(database)
    made = store.record(spec, plan(spec), tmp_path)
    with database.session() as session:
        config = _alembic()
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0001")
    assert tables(database) == {"focus_lab_experiments", "focus_lab_trials", VERSION_TABLE}
    database.migrate()
    assert store.experiment("tiny") == made
    assert len(store.trials(made.id)) == 2
    store.close()


def test_missing_tables_are_made_and_those_of_a_newer_focus_lab_are_said(
    store_url: str,
) -> None:
    database = Database(store_url, migrate=False)
    assert database.is_current()
    with database.session() as session:
        session.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.close()
    for migrate in (False, True):
        with pytest.raises(StoreError, match=r"was made by a newer focus_lab, got .*9999"):
            Database(store_url, migrate=migrate)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_missing_file_is_not_made_where_none_is_to_be_made(store_url: str) -> None:
    with pytest.raises(NoStoreError):
        Database(store_url, create=False)
    assert not Path(store_url.removeprefix("sqlite:///")).exists()


@pytest.mark.slow
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_transaction_that_idles_gives_its_locks_back(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_IDLE_S", 0.1)
    lock = sa.text(f"LOCK TABLE {VERSION_TABLE}")

    def freeze(opened: Database) -> None:
        with opened.session() as frozen:
            frozen.execute(lock)
            with opened.session() as other:
                other.execute(lock)  # waits until the first one's are gone
            frozen.execute(lock)

    with contextlib.closing(Database(store_url)) as opened:
        with pytest.raises(StoreUnreachableError, match="idle-in-transaction"):
            freeze(opened)
        with opened.session() as again:
            again.execute(lock)
