"""Checkpoints of long ended experiments go; what one reads later stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from focus_lab.lab.queue.events import Cursor, EventLog
from focus_lab.lab.queue.policy import Policy
from focus_lab.lab.queue.queue import Queue
from focus_lab.lab.queue.retention import remove_old_checkpoints
from focus_lab.lab.queue.states import Action
from focus_lab.lab.queue.submission import Submitter
from focus_lab.lab.store import Store
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.training.checkpoint import step_of
from focus_lab.training.folder import BEST, STEPS, checkpoint_folder


def test_the_pattern_is_that_of_the_files_which_training_writes() -> None:
    name = STEPS.replace("*", "000000012")
    assert step_of(name) == 12
    assert step_of(BEST) is None


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
        folder = checkpoint_folder(tmp_path / name / "trials" / "a-seed0-12345678")
        folder.mkdir(parents=True)
        names = ["step_000000001.pt", "step_000000002.pt", "notes.txt"]
        files[name] = [folder / file for file in names]
        for file in files[name]:
            file.write_bytes(b"12345")
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
