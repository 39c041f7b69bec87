"""A copy of the store, restored, goes on where it stood."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import postgresql as servers
import pytest

from focus_lab.lab.queue.dispatcher import Dispatcher
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.jobs import MemoryJobs
from focus_lab.lab.queue.leadership import Leadership
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.states import Action
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan


def fill(queue: Queue, folder: Path, make: Callable[..., ExperimentSpec]) -> list[Any]:
    for name in ("one", "two"):
        spec = make(name)
        queue.submit(spec, plan(spec), folder / name, Submitter("ann"), key=name)
    return [queue.entry(name) for name in ("one", "two")]


def check(copy: Store, before: list[Any]) -> None:
    """What the copy has is what there was, and it works."""
    queue = Queue(copy)
    assert [queue.entry(entry.id) for entry in before] == before
    assert [len(copy.trials(entry.id)) for entry in before] == [1, 1]
    events = EventLog(copy.database)
    kinds = [event.kind for event in events.after(Cursor())]
    assert kinds == ["submitted", "submitted"]
    jobs = MemoryJobs()
    Dispatcher(queue, jobs, Leadership(copy.database, "me"), "me").round()
    assert len(jobs.jobs) == 2
    newest = events.newest()
    queue.act("two", Action.CANCEL, "ann")
    assert [event.kind for event in events.after(newest)] == ["cancel"]


@pytest.fixture
def database() -> str:
    return "sqlite"


def test_sqlite_is_copied_while_it_runs(
    store: Store, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    queue = Queue(store)
    before = fill(queue, tmp_path, tiny_experiment)
    with (
        sqlite3.connect(tmp_path / "lab.db") as source,
        sqlite3.connect(tmp_path / "copy.db") as target,
    ):
        source.backup(target)
    source.close()
    target.close()
    # What comes after the copy is not in it.
    queue.act("one", Action.CANCEL, "ann")
    copy = Store(f"sqlite:///{tmp_path / 'copy.db'}", create=False)
    check(copy, before)
    copy.close()


@pytest.mark.slow
def test_postgresql_is_dumped_and_restored(
    tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    # Whole databases, which a server that is given may not let tests make.
    if reason := servers.why_not():
        pytest.skip(reason)
    with servers.server() as started:
        dump_and_restore(started, tmp_path, tiny_experiment)


def dump_and_restore(
    server: servers.PostgreSQL, tmp_path: Path, tiny_experiment: Callable[..., ExperimentSpec]
) -> None:
    url, other = server.new_database(), server.new_database()
    store = Store(url)
    before = fill(Queue(store), tmp_path, tiny_experiment)
    place = servers.binaries()
    assert place is not None
    dump = tmp_path / "store.dump"
    plain = [u.replace("postgresql+psycopg", "postgresql") for u in (url, other)]
    with dump.open("wb") as file:
        command = [place / "pg_dump", "--format=custom", f"--dbname={plain[0]}"]
        subprocess.run(command, check=True, stdout=file)
    Queue(store).act("one", Action.CANCEL, "ann")
    store.close()
    command = [
        place / "pg_restore", "--clean", "--if-exists", "--no-owner", f"--dbname={plain[1]}", dump,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    copy = Store(other)
    check(copy, before)
    copy.close()
