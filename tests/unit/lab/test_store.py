"""The store: what may change, who may change it, and what is said when it cannot be used."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from focus_lab.errors import StoreError
from focus_lab.lab import database as databases
from focus_lab.lab.states import TRANSITIONS, TrialState
from focus_lab.lab.store import Experiment, LeaseHeldError, StaleTrialError, Store, Trial
from focus_lab.lab.tables import ExperimentRow
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan

P, R, S, F, C = TrialState
Record = Callable[..., Experiment]

WAYS: dict[TrialState, tuple[TrialState, ...]] = {P: (), R: (R,), S: (R, S), F: (R, F), C: (C,)}


ON_A_SERVER = pytest.param("postgresql", marks=pytest.mark.slow)


@pytest.fixture(params=["sqlite", ON_A_SERVER])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def bring(store: Store, trial: Trial, state: TrialState) -> Trial:
    for step in WAYS[state]:
        trial = store.move(trial, step)
    return trial


def again(store: Store, trial: Trial) -> Trial:
    """The trial as it is now."""
    trials = store.trials(trial.experiment_id, planned_only=False)
    return next(found for found in trials if found.id == trial.id)


def test_a_recorded_experiment_is_read_back(store: Store, record: Record, tmp_path: Path) -> None:
    made = record(0.1, 0.5, seeds=(0, 1))
    assert store.experiment("tiny") == store.experiment(made.id) == made
    assert made.folder == tmp_path / "tiny"
    assert made.created_at.tzinfo is not None
    trials = store.trials(made.id)
    assert [trial.name for trial in trials] == [
        "keep_ratio=0.1-seed0",
        "keep_ratio=0.5-seed0",
        "keep_ratio=0.1-seed1",
        "keep_ratio=0.5-seed1",
    ]
    assert {trial.state for trial in trials} == {P}
    assert trials[0].spec["model"]["token_selection"]["keep_ratio"] == 0.1


@pytest.mark.parametrize(("start", "end"), list(itertools.product(TrialState, TrialState)))
def test_the_table_of_transitions_is_obeyed(
    store: Store, record: Record, start: TrialState, end: TrialState
) -> None:
    trial = bring(store, store.trials(record(0.5).id)[0], start)
    if end in TRANSITIONS[start]:
        moved = store.move(trial, end)
        assert moved.state is end
        assert moved.version == trial.version + 1
        assert again(store, trial) == moved
    else:
        with pytest.raises(ValueError, match=f"cannot go from {start} to {end}"):
            store.move(trial, end)
        assert again(store, trial) == trial


def test_nothing_leaves_succeeded() -> None:
    assert TRANSITIONS[S] == frozenset()
    assert [state for state in TrialState if state.is_terminal] == [S, F, C]


def test_whoever_saw_an_older_version_is_refused(store: Store, record: Record) -> None:
    seen = store.trials(record(0.5).id)[0]
    store.move(seen, R)
    with pytest.raises(StaleTrialError, match="another process changed it, got version 0"):
        store.move(seen, R)
    # Back in the same state, but not the same version.
    store.move(again(store, seen), P)
    with pytest.raises(StaleTrialError):
        store.move(seen, R)


def test_attempts_times_and_reasons_are_kept(store: Store, record: Record) -> None:
    trial = store.trials(record(0.5).id)[0]
    running = store.move(trial, R)
    assert running.attempts == 1
    assert running.started_at is not None
    second = store.move(store.move(running, P), R)
    assert second.attempts == 2
    assert second.started_at == running.started_at
    failed = store.move(second, F, failure="OutOfMemory", message="memory is exhausted")
    assert (failed.failure, failed.message) == ("OutOfMemory", "memory is exhausted")
    assert failed.ended_at is not None
    assert again(store, trial) == failed


def test_reasons_of_any_length_and_with_any_character_are_kept(
    store: Store, record: Record
) -> None:
    running = store.move(store.trials(record(0.5).id)[0], R)
    broken = b"photo\xff.jpg".decode("utf-8", "surrogateescape")
    failed = store.move(running, F, failure="Error" * 50, message=f"{broken}: \0 of 5 bytes")
    assert failed.failure == ("Error" * 50)[:64]
    assert failed.message == "photo\\udcff.jpg: \\0 of 5 bytes"
    assert again(store, running) == failed


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_walk_of_two_drivers_leaves_what_the_winners_wrote(
    store: Store, record: Record, data: st.DataObject
) -> None:
    name = f"walk-{len(store.experiments())}"
    start = store.trials(record(0.5, name=name).id)[0]
    views = [start, start]
    truth = start
    for _ in range(data.draw(st.integers(1, 12))):
        who = data.draw(st.integers(0, 1))
        if data.draw(st.booleans()):
            views[who] = again(store, start)
        goal = data.draw(st.sampled_from(TrialState))
        try:
            views[who] = truth = store.move(views[who], goal)
        except ValueError:
            assert goal not in TRANSITIONS[views[who].state]
        except StaleTrialError:
            assert views[who].version < truth.version
    assert again(store, start) == truth


def test_recording_again_keeps_retries_adds_and_takes_out(store: Store, record: Record) -> None:
    first = record(0.1, 0.2, 0.3, 0.4)
    kept, failed, cancelled, gone = store.trials(first.id)
    bring(store, kept, S)
    store.move(store.move(failed, R), F, failure="ValueError", message="why")
    bring(store, cancelled, C)

    again = record(0.1, 0.2, 0.3, 0.5)
    assert again.id == first.id
    trials = {trial.cell: trial for trial in store.trials(again.id)}
    assert list(trials) == [f"keep_ratio={ratio}" for ratio in (0.1, 0.2, 0.3, 0.5)]
    assert trials["keep_ratio=0.1"].state is S
    assert trials["keep_ratio=0.1"].id == kept.id
    retried = trials["keep_ratio=0.2"]
    assert (retried.state, retried.attempts, retried.id) == (P, 1, failed.id)
    assert (retried.failure, retried.message) == (None, None)
    assert trials["keep_ratio=0.3"].state is C
    assert trials["keep_ratio=0.5"].attempts == 0
    # Taken out of the plan, but not forgotten: put back in, it is the same trial.
    assert gone.id in {trial.id for trial in store.trials(again.id, planned_only=False)}
    record(0.4)
    assert [trial.id for trial in store.trials(again.id)] == [gone.id]


def test_only_the_chosen_cells_are_tried_again(
    store: Store, record: Record, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    made = record(0.1, 0.2)
    for trial in store.trials(made.id):
        bring(store, trial, F)
    axes = {"model.token_selection.keep_ratio": [0.1, 0.2]}
    spec = tiny_experiment(training={"epochs": 3}, sweep={"axes": axes})
    store.record(spec, plan(spec), tmp_path, ["keep_ratio=0.2"])
    assert [trial.state for trial in store.trials(made.id)] == [F, P]


def test_compute_may_change_without_a_new_trial(
    store: Store, record: Record, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    first = record(0.5)
    spec = tiny_experiment(
        training={"epochs": 3},
        compute={"max_failures": 7},
        sweep={"axes": {"model.token_selection.keep_ratio": [0.5]}},
    )
    store.record(spec, plan(spec), tmp_path)
    [trial] = store.trials(first.id)
    assert trial.spec["compute"]["max_failures"] == 7


def test_opening_an_experiment_changes_nothing_of_it(
    store: Store, record: Record, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    made = record(0.1, 0.2)
    opened = store.open(tiny_experiment(description="another"), tmp_path / "elsewhere")
    assert opened == made
    assert len(store.trials(made.id)) == 2


def test_experiments_come_newest_first(store: Store, record: Record) -> None:
    for name in ("one", "two", "three"):
        record(0.5, name=name)
    assert [made.name for made in store.experiments()] == ["three", "two", "one"]


def test_nobody_passes_for_another_by_its_id(store: Store, record: Record) -> None:
    first = record(0.5, name="one")
    with pytest.raises(ValueError, match="must not look like the id of an experiment"):
        record(0.5, name=first.id)
    # Nor one that was recorded before that was refused.
    with store.database.session() as session:
        session.execute(
            sa.insert(ExperimentRow).values(
                id="f" * 32, name=first.id, spec={}, folder="x", created_at=first.created_at
            )
        )
    assert store.experiment(first.id) == first


def test_an_unknown_name_lists_the_known_ones(store: Store, record: Record) -> None:
    with pytest.raises(StoreError, match="got 'nothing'; known are none yet"):
        store.experiment("nothing")
    record(0.5, name="one")
    with pytest.raises(StoreError, match="got 'nothing'; known are one"):
        store.experiment("nothing")


# Leases


def test_a_second_owner_is_refused_until_the_first_gives_up(store: Store, record: Record) -> None:
    made = record(0.5)
    store.take_lease(made.id, "host:1", 60, set())
    store.take_lease(made.id, "host:1", 60, set())  # renewing is taking again
    with pytest.raises(LeaseHeldError, match="another process carries it out, got host:1; wait"):
        store.take_lease(made.id, "host:2", 60, set())
    store.drop_lease(made.id, "host:2")  # not its own: nothing happens
    assert store.lease_owner(made.id) == "host:1"
    store.drop_lease(made.id, "host:1")
    store.take_lease(made.id, "host:2", 60, set())
    assert store.lease_owner(made.id) == "host:2"


def test_the_lease_of_a_dead_owner_is_taken_over(store: Store, record: Record) -> None:
    made = record(0.5)
    store.take_lease(made.id, "host:1", 60, set())
    store.take_lease(made.id, "host:2", 60, {"host:1"})
    assert store.lease_owner(made.id) == "host:2"


@on_sqlite
def test_a_lease_runs_out(store: Store, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(0.5)
    store.take_lease(made.id, "host:1", 60, set())
    now = databases.now()
    monkeypatch.setattr(databases, "now", lambda: now + timedelta(seconds=59))
    with pytest.raises(LeaseHeldError):
        store.take_lease(made.id, "host:2", 60, set())
    monkeypatch.setattr(databases, "now", lambda: now + timedelta(seconds=61))
    store.take_lease(made.id, "host:2", 60, set())
    assert store.lease_owner(made.id) == "host:2"


@pytest.mark.parametrize("database", [ON_A_SERVER], indirect=True)
@pytest.mark.parametrize("days", [-1, 1])
def test_a_machine_whose_clock_is_wrong_neither_takes_nor_keeps_a_lease(
    store: Store, record: Record, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    made = record(0.5)
    store.take_lease(made.id, "host:1", 60, set())
    now = databases.now()
    monkeypatch.setattr(databases, "now", lambda: now + timedelta(days=days))
    with pytest.raises(LeaseHeldError):
        store.take_lease(made.id, "host:2", 60, set())
    store.take_lease(made.id, "host:1", -1, set())
    store.take_lease(made.id, "host:2", 60, set())
    assert store.lease_owner(made.id) == "host:2"


# What several processes do at the same moment


@pytest.mark.parametrize("database", [ON_A_SERVER], indirect=True)
def test_a_new_store_may_be_opened_by_many_at_once(
    store_url: str, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    together = threading.Barrier(6)

    def open_and_record(_: int) -> str:
        together.wait(30)
        opened = Store(store_url)
        together.wait(30)
        found = opened.open(tiny_experiment(), tmp_path).id
        opened.close()
        return found

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(open_and_record, range(6)))) == 1


def test_of_many_who_want_a_lease_or_a_trial_at_once_one_gets_it(
    store: Store, record: Record
) -> None:
    made = record(0.5)
    seen = store.trials(made.id)[0]
    together = threading.Barrier(6)

    def attempt(number: int) -> list[str]:
        got = []
        together.wait(30)
        with contextlib.suppress(LeaseHeldError):
            store.take_lease(made.id, f"host:{number}", 60, set())
            got.append("lease")
        together.wait(30)
        with contextlib.suppress(StaleTrialError):
            store.move(seen, R)
            got.append("trial")
        return got

    with ThreadPoolExecutor(6) as pool:
        got = list(itertools.chain.from_iterable(pool.map(attempt, range(6))))
    assert sorted(got) == ["lease", "trial"]


# What cannot be used


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "lab.db"
    path.write_text("this is a text, and long enough to be taken for a page of a database " * 20)
    with pytest.raises(
        StoreError, match=r"lab\.db: is not a focus_lab store, got .*not a database"
    ):
        Store(f"sqlite:///{path}")
    assert path.read_text().startswith("this is a text")


@pytest.mark.parametrize("folder", ["nowhere", "/proc"], ids=["missing", "read-only"])
def test_a_folder_that_takes_no_file_is_said(tmp_path: Path, folder: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be used, got unable to open database file; "):
        Store(f"sqlite:///{tmp_path / folder / 'lab.db'}")


@on_sqlite
def test_a_locked_database_is_said(
    tmp_path: Path, store: Store, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(0.5)
    other = sqlite3.connect(tmp_path / "lab.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(databases, "_BUSY_MS", 50)
    store.close()  # its next connection waits no longer than that
    with pytest.raises(StoreError, match=r"cannot be used, got database is locked; close the"):
        store.set_tracking_id("x", "y")
    other.execute("ROLLBACK")
    other.close()


def test_a_database_that_another_program_keeps_for_itself_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "lab.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(databases, "_BUSY_MS", 50)
    with pytest.raises(StoreError, match=r"cannot be used, got database is locked; close the"):
        Store(f"sqlite:///{tmp_path / 'lab.db'}")
    other.close()


def test_a_store_of_a_newer_version_is_said(store_url: str, store: Store) -> None:
    with store.database._engine.begin() as connection:
        connection.execute(sa.text("UPDATE focus_lab_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"was made by a newer focus_lab, got .*9999.*upgrade"):
        Store(store_url)


@pytest.mark.parametrize("database", [ON_A_SERVER], indirect=True)
def test_a_server_that_refuses_is_said_with_what_to_check(store_url: str) -> None:
    url = sa.make_url(store_url).set(database="nothing")
    with pytest.raises(StoreError, match=r'cannot be used, got .*"nothing" does not exist; check'):
        Store(url.render_as_string(hide_password=False))
    nowhere = "postgresql+psycopg://user:secret@127.0.0.1:1/lab"
    with pytest.raises(StoreError, match=r"cannot be used, got .*; check that its") as caught:
        Store(nowhere)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["lab.db", "nonsense://x/y", "postgresql+nothing://x/y"])
def test_a_url_that_is_none_is_said(url: str) -> None:
    with pytest.raises(StoreError, match="--store: is not a usable database URL, got"):
        Store(url)


def test_a_password_is_not_printed(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Store("nonsense://user:secret@host/lab")
    assert "secret" not in str(caught.value)


def test_two_stores_on_one_database_see_each_other(
    store_url: str, store: Store, record: Record
) -> None:
    made = record(0.5)
    second = Store(store_url)
    trial = second.trials(made.id)[0]
    second.move(trial, R)
    assert again(store, trial).state is R
    second.close()


def test_a_store_lives_beside_mlflow_in_one_database(store_url: str) -> None:
    other = sa.create_engine(store_url)
    with other.begin() as connection:
        for statement in (
            "CREATE TABLE alembic_version (version_num VARCHAR(32))",
            "INSERT INTO alembic_version VALUES ('mlflow')",
            "CREATE TABLE experiments (experiment_id INTEGER)",
        ):
            connection.execute(sa.text(statement))
    other.dispose()
    for _ in range(2):
        opened = Store(store_url)
        assert opened.experiments() == []
        with opened.database._engine.connect() as connection:
            rows = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
            assert rows.scalars().all() == ["mlflow"]
        opened.close()


def test_a_store_with_the_old_names_of_tables_goes_on(
    store_url: str, store: Store, record: Record
) -> None:
    made = record(0.1, 0.2)
    trials = store.trials(made.id)
    old = ("alembic_version", "experiments", "trials")
    new = ("focus_lab_version", "focus_lab_experiments", "focus_lab_trials")
    with store.database._engine.begin() as connection:
        for before, after in zip(old, new, strict=True):
            connection.execute(sa.text(f"ALTER TABLE {after} RENAME TO {before}"))
    opened = Store(store_url)
    assert opened.trials(made.id) == trials
    assert set(new) <= set(sa.inspect(opened.database._engine).get_table_names())
    opened.move(trials[0], R)
    opened.close()
