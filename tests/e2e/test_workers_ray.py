"""A trial of two workers under Ray Train: what it computes, also when one of them dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import family_of
from rich.console import Console

from focus_lab.lab.executor import InProcessExecutor
from focus_lab.lab.lab import Lab, open_lab
from focus_lab.lab.progress import PlainProgress, TrialProgress
from focus_lab.lab.store import Store
from focus_lab.lab.tracking import MemoryTracker
from focus_lab.lab.tune_executor import TuneExecutor
from focus_lab.specs.compose import merge
from focus_lab.specs.experiment import ExperimentSpec
from focus_lab.specs.plan import plan
from focus_lab.specs.training import ComputeSpec

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

COMPUTE = {"device": "cpu", "workers": 2, "max_failures": 1}


@pytest.fixture(scope="module")
def executor() -> Iterator[TuneExecutor]:
    """One Ray for all tests of this file."""
    started = TuneExecutor(ComputeSpec(**COMPUTE))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def spec(tiny_content: dict[str, Any]) -> ExperimentSpec:
    changes = {"name": "two-workers", "training": {"epochs": 4}, "compute": COMPUTE}
    return ExperimentSpec.model_validate(merge(tiny_content, changes))


def carry_out(lab: Lab, spec: ExperimentSpec, executor: Any, progress: Any = None) -> Any:
    """Sweep; returns (the trial, its AP by epoch, its losses by epoch)."""
    lab.sweep(spec, plan(spec), executor, progress or PlainProgress(Console(quiet=True)))
    record = lab.record(spec.name)
    [trial] = lab.result(record)["trials"]
    curves = record.trials[0].curves
    return trial, curves.get("coco/AP"), curves.get("loss/total")


class Killing(PlainProgress):
    """Kills a worker process, once, after the first epoch."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.killed: list[int] = []
        self.notes: list[str] = []

    def changed(self, trial: TrialProgress, event: str) -> None:
        if event.startswith("epoch 1") and not self.killed:
            workers = [
                pid
                for pid, args in family_of(os.getpid()).items()
                if args.startswith("ray::_RayTrainWorker") or "RayTrainWorker" in args
            ]
            self.killed = workers[-1:]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)

    def note(self, text: str) -> None:
        self.notes.append(text)


def alone(spec: ExperimentSpec, folder: Path) -> Any:
    """The same trial of one worker, in this process."""
    compute = spec.compute.model_copy(update={"workers": 1})
    store = Store(f"sqlite:///{folder / 'alone.db'}")
    lab = Lab(store, MemoryTracker(), folder / "alone")
    found = carry_out(lab, spec.model_copy(update={"compute": compute}), InProcessExecutor())
    store.close()
    return found


def test_two_workers_end_where_one_does_also_when_one_of_them_is_killed(
    spec: ExperimentSpec, tmp_path: Path, executor: TuneExecutor
) -> None:
    progress = Killing()
    with open_lab(tmp_path / "runs") as lab:
        trial, ap, losses = carry_out(lab, spec, executor, progress)
    assert progress.killed
    assert (trial["status"], trial["message"]) == ("SUCCEEDED", None)
    assert trial["attempts"] == 2
    [note] = progress.notes
    assert "worker" in note
    assert "was lost" in note
    assert "going on, 0 more times at most" in note
    _, alone_ap, alone_losses = alone(spec, tmp_path)
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 4]
    assert [value for _, value in losses] == pytest.approx([v for _, v in alone_losses], rel=1e-4)
    assert [value for _, value in ap] == pytest.approx([v for _, v in alone_ap], abs=1e-9)


class Stopping(PlainProgress):
    """Stops the loader of one worker, once, after the first epoch: it hangs and does not die."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.stopped: list[int] = []

    def changed(self, trial: TrialProgress, event: str) -> None:
        if event.startswith("epoch 1") and not self.stopped:
            worker = [
                pid for pid, args in family_of(os.getpid()).items() if "RayTrainWorker" in args
            ][-1]
            self.stopped = [pid for pid, args in family_of(worker).items() if "forkserver" in args]
            for pid in self.stopped:
                os.kill(pid, signal.SIGSTOP)


def test_a_worker_whose_loader_hangs_is_found_and_named(
    spec: ExperimentSpec,
    tmp_path: Path,
    executor: TuneExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"stall_timeout_s": 30.0, "max_failures": 0, "loader_workers": 1}
    compute = spec.compute.model_copy(update=changes)
    # Longer than what the loader has made ahead.
    training = spec.training.model_copy(update={"epochs": 40})
    stuck = spec.model_copy(update={"name": "stuck", "compute": compute, "training": training})
    monkeypatch.setattr(executor, "_compute", compute)
    progress = Stopping()
    try:
        with open_lab(tmp_path / "runs") as lab:
            trial, _, _ = carry_out(lab, stuck, executor, progress)
    finally:
        for pid in progress.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert progress.stopped
    assert (trial["status"], trial["failure"]) == ("FAILED", "Stalled"), trial["message"]
    assert "compute.stall_timeout_s: no step for" in trial["message"]
    assert "(waiting for a batch)" in trial["message"]
    assert "waiting for the other workers" not in trial["message"]
    assert "that was once more than compute.max_failures allows, 0" in trial["message"]
    [stacks] = re.findall(r"the stacks are in (\S+);", trial["message"])
    assert "dataloader.py" in Path(stacks).read_text()
