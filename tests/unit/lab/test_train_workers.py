"""What Ray Train's errors mean for a trial; nothing is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_lab.lab.executor import TrialJob
from focus_lab.lab.failure import LOST, NO_ROOM, OUT_OF_MEMORY, PREEMPTED, STALLED, Failure
from focus_lab.lab.recovery import Attempt
from focus_lab.lab.train_workers import (
    AttemptFailedError,
    explain_stalls,
    explain_training_failure,
    train_with_workers,
)
from focus_lab.specs.training import ComputeSpec
from focus_lab.training.watchdog import WAITING, stall_file

pytestmark = pytest.mark.slow

COMPUTE = ComputeSpec(workers=2, placement_timeout_s=30)


def explain(folder: Path, **failures: Exception) -> Failure:
    from ray.train.v2.api.exceptions import WorkerGroupError

    by_rank = {int(rank.removeprefix("rank")): error for rank, error in failures.items()}
    return explain_training_failure(WorkerGroupError("", by_rank), folder, COMPUTE)


def dead(message: str = "The actor died unexpectedly") -> Exception:
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError(message, RayActorError(error_msg=message))


def told(kind: str, message: str) -> Exception:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return UserExceptionWithTraceback(AttemptFailedError(kind, message), "Traceback ...")


def test_a_dead_worker_is_lost_and_named(tmp_path: Path) -> None:
    found = explain(tmp_path, rank1=dead(), rank0=told(LOST, "another worker went"))
    assert found == Failure(LOST, "worker 1 was lost, got The actor died unexpectedly")


def test_what_a_worker_did_to_itself_explains_the_others(tmp_path: Path) -> None:
    found = explain(
        tmp_path,
        rank0=dead(),
        rank1=told("NonFiniteLossError", "training: the gradient not finite"),
        rank2=told(LOST, "another worker could not be reached any more"),
    )
    assert found == Failure("NonFiniteLossError", "training: the gradient not finite")


def test_a_machine_without_memory_is_named_as_such(tmp_path: Path) -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    cause = WorkerHealthCheckFailedError("", OutOfMemoryError("killed"))
    found = explain(tmp_path, rank1=cause)
    assert found == Failure(OUT_OF_MEMORY, "worker 1 exhausted its machine")


def test_a_worker_that_ray_ended_for_its_memory_is_not_lost(tmp_path: Path) -> None:
    found = explain(tmp_path, rank1=dead("Worker killed due to the node running low on memory"))
    assert found == Failure(OUT_OF_MEMORY, "worker 1 exhausted its machine")


@pytest.mark.parametrize(("preempted", "kind"), [(False, LOST), (True, PREEMPTED)])
def test_the_death_of_what_leads_the_workers_is_a_lost_worker(
    preempted: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import train
    from ray.exceptions import RayActorError
    from ray.train import torch
    from ray.tune.integration import ray_train

    class Trainer:
        def __init__(self, *_: object, **__: object) -> None:
            """Takes anything."""

        def fit(self) -> None:
            raise RayActorError(error_msg="The actor died unexpectedly", preempted=preempted)

    monkeypatch.setattr(torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(ray_train, "TuneReportCallback", lambda: None)
    monkeypatch.setattr(train, "RunConfig", lambda **_: None)
    for name in ("WORKER_GROUP_START", "COLLECTIVE", "WORKER_HEALTH_CHECK"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}_TIMEOUT_S", "1")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    job = TrialJob("a", "a", {}, tmp_path)
    with pytest.raises(AttemptFailedError) as caught:
        train_with_workers(job, Attempt(), COMPUTE, {"cpu": 1.0, "gpu": 0.0}, tmp_path)
    assert caught.value.failure == Failure(
        kind, "what leads the workers was lost, got The actor died unexpectedly"
    )


def test_a_hung_worker_is_named_and_not_those_that_waited_for_it(tmp_path: Path) -> None:
    for rank, doing in ((0, WAITING), (1, "waiting for a batch"), (2, WAITING)):
        line = json.dumps({"doing": doing, "seconds": 61.2})
        stall_file(tmp_path, rank).write_text(f"{line}\nThread 0x1 ...")
    found = explain(tmp_path, rank0=dead(), rank1=dead(), rank2=dead())
    assert found.kind == STALLED
    assert found.message == (
        "compute.stall_timeout_s: no step for 61 s, got worker 1 (waiting for a batch); "
        f"the stacks are in {stall_file(tmp_path, 1)}"
    )


def test_without_stalls_there_is_no_such_failure(tmp_path: Path) -> None:
    assert explain_stalls(tmp_path) is None


def test_workers_without_room_are_a_sentence(tmp_path: Path) -> None:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    error = ControllerError(WorkerGroupStartupTimeoutError(2))
    found = explain_training_failure(error, tmp_path, COMPUTE)
    assert found.kind == NO_ROOM
    assert found.message.startswith(
        "compute.workers: there was no room for 2 workers at once within 30 s"
    )
