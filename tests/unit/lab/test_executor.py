"""The executor of this process, and failures in the user's words."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import DataError, NonFiniteLossError, StorageUnreachableError
from focus_lab.lab import worker
from focus_lab.lab.executor import InProcessExecutor, TrialJob
from focus_lab.lab.failure import ERROR_LOG, MEMORY, Failure, explain_failure
from focus_lab.lab.progress import PROGRESS, TrialProgress
from focus_lab.lab.trial_log import TrialLog
from focus_lab.lab.worker import WorkerReporter
from focus_lab.specs.experiment import TrialSpec
from focus_lab.training.workers import ALONE, Workers


class Told:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def started(self, trial_id: str) -> None:
        self.events.append((trial_id, "started"))

    def epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        self.events.append((trial_id, "epoch", epoch))

    def succeeded(self, trial_id: str, history: list[Any]) -> None:
        self.events.append((trial_id, "succeeded", len(history)))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def again(self, trial_id: str, failure: Any) -> None:
        self.events.append((trial_id, "again"))

    def failed(self, trial_id: str, failure: Any) -> None:
        self.events.append((trial_id, "failed", failure.kind))


def job(folder: Path, name: str, spec: TrialSpec) -> TrialJob:
    return TrialJob(name, name, spec.model_dump(mode="json"), folder / name)


def test_a_failed_trial_does_not_end_the_others(
    tiny_trial: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    good = tiny_trial(training={"epochs": 1})
    bad = tiny_trial(data={"num_train": 3})
    told = Told()
    InProcessExecutor().run([job(tmp_path, "bad", bad), job(tmp_path, "good", good)], told)
    assert told.events == [
        ("bad", "started"),
        ("bad", "failed", "DataError"),
        ("good", "started"),
        ("good", "epoch", 1),
        ("good", "succeeded", 1),
    ]


def test_an_interruption_goes_through(
    tiny_trial: Callable[..., TrialSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "fit", interrupted)
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        InProcessExecutor().run([job(tmp_path, "a", tiny_trial())], told)
    assert told.events == [("a", "started")]


@pytest.mark.parametrize("error", [DataError("data: broken"), NonFiniteLossError("loss: nan")])
def test_our_own_errors_are_passed_on_as_they_are(error: Exception, tmp_path: Path) -> None:
    failure = explain_failure(error, tmp_path)
    assert (failure.kind, failure.message) == (type(error).__name__, str(error))
    assert not (tmp_path / ERROR_LOG).exists()


def test_an_unexpected_error_leaves_its_traceback(tmp_path: Path) -> None:
    try:
        raise ValueError("what nobody thought of")
    except ValueError as error:
        failure = explain_failure(error, tmp_path / "trial")
    path = tmp_path / "trial" / ERROR_LOG
    assert failure.kind == "ValueError"
    assert failure.message == f"ValueError: what nobody thought of; the traceback is in {path}"
    assert "Traceback" in path.read_text()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError("Unable to allocate 9 TiB for an array"),
        MemoryError(),
    ],
)
def test_exhausted_memory_comes_with_advice(
    error: Exception,
    tmp_path: Path,
    tiny_trial: Callable[..., TrialSpec],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def carry_out(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "carry_out", carry_out)
    failures: list[Failure] = []

    class Listening(Told):
        def failed(self, trial_id: str, failure: Any) -> None:
            failures.append(failure)

    InProcessExecutor().run([job(tmp_path, "a", tiny_trial())], Listening())
    [failure] = failures
    assert failure.kind == "OutOfMemory"
    profile = tmp_path / "a" / MEMORY
    said = str(error) or "MemoryError"
    assert failure.message.startswith(f"memory is exhausted, got {said}; the worker held ")
    assert f" MiB ({profile}); lower training.batch_size" in failure.message
    assert "MiB at most" in profile.read_text()


def test_nothing_is_announced_that_is_not_done(
    tmp_path: Path, tiny_trial: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: object) -> None:
        raise StorageUnreachableError("compute.storage: x does not answer")

    monkeypatch.setattr(worker, "carry_out", carry_out)
    told: list[Failure] = []
    listener = Told()
    monkeypatch.setattr(listener, "failed", lambda trial_id, failure: told.append(failure))
    InProcessExecutor().run([job(tmp_path, "a", tiny_trial())], listener)
    assert [failure.message for failure in told] == ["compute.storage: x does not answer"]


def test_a_full_disk_is_a_sentence_wherever_it_was_met(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "samples/samples.json")
    failure = explain_failure(error, tmp_path)
    assert failure == Failure(
        "OutputError",
        f"samples/samples.json: the disk is full, got {error}; "
        "free space or choose another --out DIR",
    )


def test_a_disk_that_takes_no_progress_costs_no_trial(
    tiny_trial: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    (tmp_path / "a").touch()
    log = TrialLog(tmp_path / "rank-0.log", sys.stderr)
    nowhere = job(tmp_path / "a", "b", tiny_trial())
    WorkerReporter(nowhere, lambda epoch, metrics: None, ALONE, log).progress(1, 3, 4, 2.5)
    log.close()


def test_a_place_that_cannot_be_written_hides_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert explain_failure(ValueError("x"), tmp_path / "file" / "trial").kind == "ValueError"


def test_the_steps_of_a_worker_are_seen_in_the_table(
    tiny_trial: Callable[..., TrialSpec], tmp_path: Path
) -> None:
    made = job(tmp_path, "a", tiny_trial())
    made.folder.mkdir()
    log = TrialLog(tmp_path / "rank-0.log", sys.stderr)
    reporter = WorkerReporter(made, lambda epoch, metrics: None, ALONE, log)
    reporter.progress(1, 3, 4, 2.5)
    shown = TrialProgress("a", 2, made.folder, state="RUNNING")
    assert shown.done() == 0.75
    assert shown.loss == 2.5
    assert [path.name for path in made.folder.iterdir()] == [PROGRESS]
    # Another worker's steps are not the trial's.
    other = WorkerReporter(made, lambda epoch, metrics: None, Workers(rank=1, size=2), log)
    other.progress(2, 1, 4, 0.5)
    log.close()
    assert shown.done() == 0.75
    assert "epoch 1  step 3/4  loss 2.5" in (tmp_path / "rank-0.log").read_text()
