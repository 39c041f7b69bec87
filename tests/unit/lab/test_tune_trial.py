"""One attempt at a trial in an actor of Ray Tune's; no cluster is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_lab.errors import DataError, PreemptedError
from focus_lab.lab import worker
from focus_lab.lab.executor import TrialJob
from focus_lab.lab.failure import PREEMPTED, TAKEN_BACK
from focus_lab.lab.recovery import Attempt
from focus_lab.lab.train_workers import EPOCH, METRICS, AttemptFailedError
from focus_lab.lab.tune_trial import ATTEMPT, FAILURE, HISTORY, OUTCOME, train_trial
from focus_lab.specs.training import ComputeSpec

pytestmark = pytest.mark.slow  # importing Ray takes seconds

NEEDS = {"cpu": 1.0, "gpu": 0.0}
HISTORY_OF_TWO = [(1, {"coco/AP": 0.1}), (2, {"coco/AP": 0.2})]
FIRST = {"a": Attempt(), "b": Attempt(number=3, parts=2)}


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, TrialJob]:
    spec = {"training": {"batch_size": 4}}
    return {name: TrialJob(name, name, spec, tmp_path / name) for name in ("a", "b")}


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    from ray import tune

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", told.append)
    return told


def test_a_trial_reports_its_epochs_and_then_its_history(
    jobs: dict[str, TrialJob],
    reports: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def carry_out(job: TrialJob, on_epoch: Callable[..., None], *_: object) -> Any:
        assert job is jobs["b"]
        for epoch, metrics in HISTORY_OF_TWO:
            on_epoch(epoch, metrics)
        return HISTORY_OF_TWO

    monkeypatch.setattr(worker, "carry_out", carry_out)
    monkeypatch.chdir(tmp_path)
    train_trial({"trial_id": "b"}, jobs, FIRST, ComputeSpec(), NEEDS, origin=Path("/"))
    assert Path.cwd() == Path("/")
    assert reports == [
        {EPOCH: 1, METRICS: {"coco/AP": 0.1}},
        {EPOCH: 2, METRICS: {"coco/AP": 0.2}},
        {OUTCOME: "success", HISTORY: HISTORY_OF_TWO},
    ]


def test_an_error_is_an_outcome_and_not_a_lost_worker(
    jobs: dict[str, TrialJob], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(*_: object) -> None:
        raise DataError("data: broken, got nothing; mend it")

    monkeypatch.setattr(worker, "carry_out", carry_out)
    elsewhere = Path("/a folder that another machine has")
    train_trial({"trial_id": "a"}, jobs, FIRST, ComputeSpec(), NEEDS, origin=elsewhere)
    failure = {"kind": "DataError", "message": "data: broken, got nothing; mend it"}
    assert reports == [{OUTCOME: FAILURE, FAILURE: failure}]


def test_exhausted_memory_is_decided_upon_by_the_driver_and_goes_on_in_another_process(
    jobs: dict[str, TrialJob], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def carry_out(job: TrialJob, on_epoch: object, workers: object, parts: int, *_: object) -> Any:
        seen.append(parts)
        if parts < 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return HISTORY_OF_TWO

    monkeypatch.setattr(worker, "carry_out", carry_out)
    compute = ComputeSpec(halve_on_out_of_memory=True)
    # An earlier sweep has halved once.
    with pytest.raises(AttemptFailedError):
        train_trial({"trial_id": "b"}, jobs, FIRST, compute, NEEDS, origin=Path("/"))
    again = {"trial_id": "b", ATTEMPT: {"number": 4, "parts": 4}}
    train_trial(again, jobs, FIRST, compute, NEEDS, origin=Path("/"))
    assert seen == [2, 4]
    assert reports[0][FAILURE]["kind"] == "OutOfMemory"
    assert reports[1] == {OUTCOME: "success", HISTORY: HISTORY_OF_TWO}
    # Where nothing is halved, the process may take the next trial.
    train_trial({"trial_id": "a"}, jobs, FIRST, ComputeSpec(), NEEDS, origin=Path("/"))
    assert (reports[2][OUTCOME], reports[2][FAILURE]["kind"]) == (FAILURE, "OutOfMemory")


def test_notice_that_the_machine_is_taken_back_ends_the_attempt(
    jobs: dict[str, TrialJob], reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.train.v2._internal.execution import preemption

    draining: dict[str, int] = {}
    here = type("Here", (), {"get_node_id": lambda self: "this machine"})()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(preemption, "_get_draining_nodes", lambda: draining)

    def carry_out(*given: Any) -> Any:
        should_stop = given[4]
        assert not should_stop()
        draining["another machine"] = 0
        assert not should_stop()
        draining["this machine"] = 0
        assert should_stop()
        raise PreemptedError

    monkeypatch.setattr(worker, "carry_out", carry_out)
    with pytest.raises(AttemptFailedError):
        train_trial({"trial_id": "a"}, jobs, FIRST, ComputeSpec(), NEEDS, origin=Path("/"))
    assert reports == [{FAILURE: {"kind": PREEMPTED, "message": TAKEN_BACK}}]
