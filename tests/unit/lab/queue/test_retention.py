"""Checkpoints of long ended experiments go; what one reads later stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.lab.lease import Lease
from focus_lab.lab.queue import retention
from focus_lab.lab.queue.attempts import Attempt
from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.retention import remove_old_checkpoints
from focus_lab.lab.queue.states import Action, QueueState
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.store import LeaseHeldError, Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.checkpoint import step_of
from focus_lab.training.folder import BEST, STEPS, checkpoint_folder

pytestmark = pytest.mark.usefixtures("check_audit")


def test_the_pattern_is_that_of_the_files_which_training_writes() -> None:
    name = STEPS.replace("*", "000000012")
    assert step_of(name) == 12
    assert step_of(BEST) is None


def write_files(experiment: Path) -> list[Path]:
    """Checkpoints of a trial, and something else."""
    folder = checkpoint_folder(experiment / "trials" / "a-seed0-12345678")
    folder.mkdir(parents=True)
    names = ["step_000000001.pt", "step_000000002.pt", "notes.txt"]
    files = [folder / file for file in names]
    for file in files:
        file.write_bytes(b"12345")
    return files


def test_checkpoints_go_when_their_time_has_come(
    store: Store,
    tmp_path: Path,
    tiny_experiment: Callable[..., ExperimentSpec],
    clock: Any,
) -> None:
    queue = Queue(store, Policy(keep_days=7.0))
    files: dict[str, list[Path]] = {}
    for name in ("ended", "without-best", "running"):
        spec = tiny_experiment(name)
        queue.submit(spec, plan(spec), tmp_path / name, Submitter("ann"))
        files[name] = write_files(tmp_path / name)
    (files["ended"][0].parent / BEST).write_bytes(b"123")
    for name in ("ended", "without-best"):
        queue.act(name, Action.CANCEL, "ann")
    assert remove_old_checkpoints(Queue(store)) == 0
    clock.advance(days=6.9)
    assert remove_old_checkpoints(queue) == 0
    clock.advance(days=0.2)
    assert remove_old_checkpoints(queue) == 15
    assert remove_old_checkpoints(queue) == 0
    there = {name: [file.exists() for file in some] for name, some in files.items()}
    assert there == {
        "ended": [False, False, True],
        "without-best": [False, True, True],
        "running": [True, True, True],
    }
    assert (files["ended"][0].parent / BEST).exists()
    told = [e.data["bytes"] for e in EventLog(store.database).after(Cursor()) if "bytes" in e.data]
    assert sorted(told) == [5, 10]


@pytest.fixture
def old(bring: Callable[..., Entry], clock: Any, tmp_path: Path) -> list[Path]:
    """Files of an experiment that failed long ago."""
    bring(QueueState.FAILED)
    clock.advance(days=8)
    return write_files(tmp_path / "one")


@pytest.fixture
def queue(store: Store) -> Queue:
    return Queue(store, Policy(keep_days=7.0))


def test_who_tries_again_before_it_is_decided_keeps_everything(
    queue: Queue, old: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = retention._removable

    def retried_meanwhile(folder: Path) -> Any:
        found = list(look(folder))
        if queue.store.has_lease(queue.entry("one").id):
            queue.act("one", Action.RETRY, "ann")
        return iter(found)

    monkeypatch.setattr(retention, "_removable", retried_meanwhile)
    assert remove_old_checkpoints(queue) == 0
    assert queue.entry("one").state is QueueState.QUEUED
    assert all(file.exists() for file in old)
    # It may start at once, and is looked at no more.
    assert not queue.store.has_lease(queue.entry("one").id)
    assert remove_old_checkpoints(queue) == 0


def test_who_tries_again_after_it_begins_when_it_is_done(
    queue: Queue,
    old: list[Path],
    admit: Callable[..., Attempt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (old[0].parent / BEST).write_bytes(b"123")
    unlink, refused = Path.unlink, []

    def meanwhile(file: Path, **details: Any) -> None:
        if not refused:
            again = queue.act("one", Action.RETRY, "ann")
            admit(again, begin=False)
            with pytest.raises(LeaseHeldError) as held, Lease(queue.store, again.id):
                pass
            refused.append(str(held.value))
        unlink(file, **details)

    monkeypatch.setattr(Path, "unlink", meanwhile)
    assert remove_old_checkpoints(queue) == 10
    assert "another process carries it out" in refused[0]
    assert [file.exists() for file in old] == [False, False, True]
    with Lease(queue.store, queue.entry("one").id):
        pass


def test_where_nothing_is_left_no_lease_is_taken(
    queue: Queue, old: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, take = [], queue.store.take_lease

    def noted(experiment_id: str, *arguments: Any) -> None:
        taken.append(experiment_id)
        take(experiment_id, *arguments)

    monkeypatch.setattr(queue.store, "take_lease", noted)
    assert remove_old_checkpoints(queue) == 5
    assert taken
    taken.clear()
    assert remove_old_checkpoints(queue) == 0
    assert not taken


def test_what_a_driver_still_holds_is_left_alone(queue: Queue, old: list[Path]) -> None:
    with Lease(queue.store, queue.entry("one").id):
        assert remove_old_checkpoints(queue) == 0
    assert all(file.exists() for file in old)
    assert remove_old_checkpoints(queue) == 5


def test_a_disk_so_slow_that_somebody_took_over_keeps_the_rest(
    queue: Queue, old: list[Path], clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old[0].parent / BEST).write_bytes(b"123")
    unlink, entry = Path.unlink, queue.entry("one")

    def slow(file: Path, **details: Any) -> None:
        unlink(file, **details)
        clock.advance(minutes=5)
        queue.store.take_lease(entry.id, "elsewhere:1:1:x", 60.0, set())

    monkeypatch.setattr(Path, "unlink", slow)
    assert remove_old_checkpoints(queue) == 0
    assert [file.exists() for file in old] == [False, True, True]
    assert queue.store.lease_owner(entry.id) == "elsewhere:1:1:x"
