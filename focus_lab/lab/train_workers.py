"""A trial of several workers: Ray Train places them, on any machines; each runs the same `fit`.

Ray Train retries nothing by itself: whether and how a trial goes on is decided in one place, by
`focus_lab.lab.relay`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focus_lab.lab.executor import TrialJob
from focus_lab.lab.failure import (
    LOST,
    NO_ROOM,
    OUT_OF_MEMORY,
    PREEMPTED,
    STALLED,
    TAKEN_BACK,
    Failure,
    explain_failure,
    says_no_memory,
)
from focus_lab.lab.recovery import Attempt
from focus_lab.specs.training import ComputeSpec

if TYPE_CHECKING:
    from focus_lab.training.workers import Workers

EPOCH, METRICS = "epoch", "metrics"
PLACES = "workers.jsonl"
"""File in a trial's folder: a line an attempt, with the machine and process of every worker."""
_SCRATCH = "ray-train"
_SLACK_S = 60.0
"""The watchdogs, which know what a worker was doing, bark before anything else gives up."""


class AttemptFailedError(Exception):
    """An attempt at a trial has failed; carries the failure across processes."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.failure = Failure(kind, message)


def train_with_workers(
    job: TrialJob,
    attempt: Attempt,
    compute: ComputeSpec,
    needs: Mapping[str, float],
    origin: Path,
) -> list[tuple[int, dict[str, float]]]:
    """Train a job with several workers; must run inside a Tune trial, which gets the epochs.

    Args:
        job: the job.
        attempt: this one.
        compute: number of workers, timeouts.
        needs: CPUs and GPUs of a worker.
        origin: the folder that relative paths of the spec start from.

    Returns:
        (epoch, metrics) of every epoch.

    Raises:
        AttemptFailedError: with the failure.
    """
    stall = compute.stall_timeout_s
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(compute.placement_timeout_s)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(stall + _SLACK_S)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(stall + _SLACK_S)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    # After the settings: some are read at import.
    from ray import train
    from ray.exceptions import RayError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    from focus_lab.training.watchdog import clear_stalls

    stalls = attempt.folder(job.folder)
    clear_stalls(stalls)
    scratch = job.folder / _SCRATCH
    # What an earlier attempt left would make Train believe that it goes on with that run.
    shutil.rmtree(scratch, ignore_errors=True)
    # Typed by the first version of Train, whose names the second took over.
    run: Any = train
    callback: Any = TuneReportCallback
    trainer: Any = TorchTrainer(
        train_worker,
        train_loop_config={
            "job": job,
            "attempt": attempt,
            "origin": origin,
            "stall_timeout_s": stall,
        },
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if needs["gpu"] else "gloo",
            timeout_s=int(stall + _SLACK_S),
        ),
        scaling_config=train.ScalingConfig(
            num_workers=compute.workers,
            use_gpu=bool(needs["gpu"]),
            resources_per_worker={name.upper(): n for name, n in needs.items() if n},
        ),
        run_config=run.RunConfig(
            name="run",
            storage_path=str(scratch),
            callbacks=[callback()],
            failure_config=run.FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    try:
        history: list[tuple[int, dict[str, float]]] = trainer.fit().return_value
    except TrainingFailedError as error:
        failure = explain_training_failure(error, stalls, compute)
        raise AttemptFailedError(failure.kind, failure.message) from None
    except RayError as error:
        # Of what Train runs beside the workers: its controller died, and they end with it.
        kind = PREEMPTED if getattr(error, "preempted", False) else LOST
        raise AttemptFailedError(
            kind, f"what leads the workers was lost, got {_first_line(error)}"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return history


def train_worker(config: dict[str, Any]) -> Any:
    """One worker, in a process that Ray Train started; the first one's history is the result."""
    from ray import train

    job: TrialJob = config["job"]
    if config["origin"].is_dir():
        # Train has changed to a folder of its own.
        os.chdir(config["origin"])
    from focus_lab.lab.worker import carry_out
    from focus_lab.training.watchdog import Watchdog
    from focus_lab.training.workers import ProcessGroup

    rank = train.get_context().get_world_rank()
    attempt: Attempt = config["attempt"]
    with Watchdog(attempt.folder(job.folder), rank, config["stall_timeout_s"]) as watchdog:
        try:
            workers = ProcessGroup(watchdog.goes_on, config["stall_timeout_s"] + _SLACK_S)
            _write_places(job.folder, workers)

            def report(epoch: int, metrics: dict[str, float]) -> None:
                with watchdog.resting():
                    train.report({EPOCH: epoch, METRICS: metrics})

            return carry_out(
                job,
                report,
                workers,
                attempt.parts,
                lambda: train.get_preemption_info() is not None,
            )
        except Exception as error:
            failure = explain_failure(error, job.folder)
            if failure.kind != OUT_OF_MEMORY and _is_lost_contact(error):
                said = _first_line(error)
                failure = Failure(LOST, f"another worker could not be reached, got {said}")
            raise AttemptFailedError(failure.kind, failure.message) from None


def _write_places(folder: Path, workers: Workers) -> None:
    """Add to the trial's folder where the workers of this attempt are."""
    from ray import train
    from ray.util import get_node_ip_address

    context = train.get_context()
    place = {
        "rank": workers.rank,
        "local_rank": context.get_local_rank(),
        "node_rank": context.get_node_rank(),
        "host": socket.gethostname(),
        "address": get_node_ip_address(),  # type: ignore[no-untyped-call]
        "process": os.getpid(),
    }
    if places := workers.gather(place):
        # On a full disk the trial goes on without the record.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / PLACES).open("a") as file:
                file.write(json.dumps({"at": round(time.time(), 3), "workers": places}) + "\n")


def _is_lost_contact(error: Exception) -> bool:
    """Whether an error only says that another worker has gone."""
    from torch.distributed import DistError

    text = str(error)
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
    )


def explain_training_failure(error: Any, folder: Path, compute: ComputeSpec) -> Failure:
    """What Ray Train's error means.

    Args:
        error: a TrainingFailedError.
        folder: the attempt's folder.
        compute: of the trial.
    """
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError

    if isinstance(error, PreemptionError):
        return Failure(PREEMPTED, TAKEN_BACK)
    if isinstance(error, ControllerError):
        return _no_start(error.controller_failure, compute)
    by_rank: dict[int, BaseException] = getattr(error, "worker_failures", {})
    causes: dict[int, Any] = {
        rank: getattr(cause, "_base_exc", getattr(cause, "health_check_failure", cause))
        for rank, cause in by_rank.items()
    }
    told = [c.failure for c in causes.values() if isinstance(c, AttemptFailedError)]
    # What a worker did to itself explains what became of the others, and not the other way round.
    for failure in told:
        if failure.kind != LOST:
            return failure
    if stalled := explain_stalls(folder):
        return stalled
    if any(_is_preempted_actor(cause) for cause in causes.values()):
        return Failure(PREEMPTED, TAKEN_BACK)
    dead = {rank: c for rank, c in causes.items() if not isinstance(c, AttemptFailedError)}
    if any(isinstance(c, OutOfMemoryError) or says_no_memory(str(c)) for c in dead.values()):
        return Failure(OUT_OF_MEMORY, f"worker {', '.join(map(str, dead))} exhausted its machine")
    which = ", ".join(map(str, sorted(dead or causes))) or "of an unknown rank"
    first = next(iter((dead or causes).values()), error)
    return Failure(LOST, f"worker {which} was lost, got {_first_line(first)}")


def _first_line(error: BaseException) -> str:
    """What an error says first; its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def explain_stalls(folder: Path) -> Failure | None:
    """The failure of an attempt whose watchdogs found it hung, or None.

    Args:
        folder: the attempt's folder.
    """
    from focus_lab.training.watchdog import WAITING, read_stalls, stall_file

    stalls = read_stalls(folder)
    if not stalls:
        return None
    # Whoever waited for the others is not the one that stood still.
    guilty = {r: s for r, s in stalls.items() if s["doing"] != WAITING} or stalls
    who = ", ".join(f"worker {rank} ({said['doing']})" for rank, said in guilty.items())
    seconds = max(said["seconds"] for said in guilty.values())
    file = stall_file(folder, next(iter(guilty)))
    return Failure(
        STALLED,
        f"compute.stall_timeout_s: no step for {seconds:.0f} s, got {who}; "
        f"the stacks are in {file}",
    )


def _no_start(cause: BaseException, compute: ComputeSpec) -> Failure:
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    name = type(cause).__name__
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return Failure(
            NO_ROOM,
            f"compute.workers: there was no room for {compute.workers} workers at once within "
            f"{compute.placement_timeout_s:g} s (compute.placement_timeout_s); "
            "lower compute.workers or what each of them needs, or add machines",
        )
    return Failure(LOST, f"the workers did not start, got {name}: {str(cause).strip()[:300]}")
