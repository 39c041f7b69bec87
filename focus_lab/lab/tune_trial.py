"""One attempt at a trial, in an actor of Tune's: it trains there, or starts the trial's workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from focus_lab.lab.executor import TrialJob
from focus_lab.lab.failure import Failure, explain_failure
from focus_lab.lab.recovery import Attempt, may_go_on
from focus_lab.lab.train_workers import EPOCH, METRICS, AttemptFailedError, train_with_workers
from focus_lab.specs.training import ComputeSpec

TRIAL_ID, ATTEMPT = "trial_id", "attempt"
"""Of a trial's config: all that Tune knows of it."""
OUTCOME, FAILURE, HISTORY = "outcome", "failure", "history"
"""Of what it reports. A failure without an outcome is that of an attempt."""


def train_trial(
    config: dict[str, Any],
    jobs: Mapping[str, TrialJob],
    attempts: Mapping[str, Attempt],
    compute: ComputeSpec,
    needs: Mapping[str, float],
    origin: Path,
) -> None:
    """Tune's trainable. What nothing can mend is an outcome, and the actor takes the next trial.

    Args:
        config: names the trial, and the attempt unless it is the sweep's first.
        jobs: by trial id.
        attempts: the sweep's first, by trial id.
        compute: of all trials.
        needs: CPUs and GPUs of a worker.
        origin: the driver's folder, which relative paths of specs start from.

    Raises:
        AttemptFailedError: the driver decides whether there is another attempt, in a new process:
            this one may hold what ended it.
    """
    from ray import tune

    job = jobs[config[TRIAL_ID]]
    again = config.get(ATTEMPT)
    attempt = Attempt(**again) if again else attempts[job.trial_id]
    if origin.is_dir():
        # Tune has changed to a folder of its own.
        os.chdir(origin)
    failure = _train(job, attempt, compute, needs, origin)
    if failure is None:
        return
    told = {"kind": failure.kind, "message": failure.message}
    if not may_go_on(failure.kind, compute):
        tune.report({OUTCOME: FAILURE, FAILURE: told})
        return
    tune.report({FAILURE: told})
    raise AttemptFailedError(failure.kind, failure.message)


def _train(
    job: TrialJob,
    attempt: Attempt,
    compute: ComputeSpec,
    needs: Mapping[str, float],
    origin: Path,
) -> Failure | None:
    """Train to the end and report it, or answer why not."""
    from ray import tune

    try:
        if compute.workers > 1:
            history = train_with_workers(job, attempt, compute, needs, origin)
        else:
            history = _train_alone(job, attempt, compute)
    except AttemptFailedError as error:
        return error.failure
    except Exception as error:
        # Ends with its traceback, which holds the tensors of an attempt that was too large.
        return explain_failure(error, job.folder)
    tune.report({OUTCOME: "success", HISTORY: history})
    return None


def _train_alone(
    job: TrialJob, attempt: Attempt, compute: ComputeSpec
) -> list[tuple[int, dict[str, float]]]:
    """Train in this process."""
    from ray import tune

    from focus_lab.lab.worker import carry_out
    from focus_lab.training.watchdog import Watchdog, clear_stalls
    from focus_lab.training.workers import Workers

    folder = attempt.folder(job.folder)
    clear_stalls(folder)
    with Watchdog(folder, 0, compute.stall_timeout_s) as watchdog:

        def report(epoch: int, metrics: dict[str, float]) -> None:
            # Until the driver has taken it: that may wait for the tracker.
            with watchdog.resting():
                tune.report({EPOCH: epoch, METRICS: metrics})

        workers = Workers(watchdog=watchdog.goes_on)
        return carry_out(job, report, workers, attempt.parts, _notice_of_this_machine())


def _notice_of_this_machine() -> Callable[[], bool]:
    """Asks whether this machine is about to be taken back."""
    import ray
    from ray.train.v2._internal.execution.preemption import _get_draining_nodes

    here: list[str] = []

    def is_draining() -> bool:
        # A head that does not answer says nothing of this machine.
        with contextlib.suppress(Exception):
            if not here:
                here.append(ray.get_runtime_context().get_node_id())
            return here[0] in _get_draining_nodes()
        return False

    return is_draining
