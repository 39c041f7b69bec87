"""Trials under Ray Tune: those of one worker train inside Tune's own actors, which are reused.

Those of several workers start them from there.

Tune sees trial ids only. It schedules and restarts lost workers; what a trial is, how far it came
and how it ended is known to the store, the trial's folder and the tracker. Nothing is restored from
Tune's own state: after the death of the driver a new Tuner gets the trials that are not done.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import focus_lab
from focus_lab.errors import ClusterUnreachableError, FocusLabError, UserError
from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.failure import LOST, Failure, explain_failure
from focus_lab.lab.head_watch import HeadWatch
from focus_lab.lab.recovery import Recovery
from focus_lab.lab.train_workers import (
    EPOCH,
    METRICS,
    AttemptFailedError,
    explain_stalls,
    train_with_workers,
)
from focus_lab.specs.training import ComputeSpec, TrainingSpec

OUTCOME, FAILURE, HISTORY, AGAIN = "outcome", "failure", "history", "again"
_HEAD = "node:__internal_head__"
"""A resource of Ray's head node. A trial that only waits for its workers takes a little of it and
no CPU: a share of one would leave rooms too small for a worker."""
_STARTS = 3
"""How often a local Ray is started before it is given up: it has 30 s each time, which are fixed,
and too few on a busy machine now and then."""
T = TypeVar("T")


class TuneExecutor:
    """Carries out trials on a Ray cluster.

    Args:
        compute: resources of a worker, and how often a lost one is replaced.
        address: of a running cluster, `auto` for the one of this machine; None starts one here.
        ship: whether this package is sent to the cluster's machines, instead of theirs.
        side_by_side: how many trials may run at once; None as many as there is room for.
    """

    def __init__(
        self,
        compute: ComputeSpec,
        address: str | None = None,
        *,
        ship: bool = False,
        side_by_side: int | None = None,
    ) -> None:
        self._compute, self._address, self._ship = compute, address, ship
        self._side_by_side = side_by_side
        self._started = False

    def start(self) -> None:
        """Start Ray; safe to call ahead, while other things are set up."""
        # Ray's own default asks for a token, and makes one for a local cluster. It stays as it is:
        # without a token whoever reaches a port may run code.
        # Ray lowers its workers' priority; beside anything else on the machine trials would starve.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
        # After the settings: some are read at import.

        if self._started:
            return
        # Tune logs a dead worker with its traceback; what that means is said in our words.
        for name in ("ray", "ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        settings: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": False,
        }
        if self._address is None:
            # "local" and not nothing: a bare init would join a stranger's cluster. Trials of
            # several workers need the dashboard: without it, Train inside Tune leaks placement
            # groups. For trials of one worker it would only make the start 2 s longer.
            # How many cores there are is Ray's to find out: it knows the limits of containers.
            settings |= {"address": "local", "include_dashboard": self._compute.workers > 1}
        else:
            settings["address"] = self._address
            if self._ship:
                package = Path(focus_lab.__file__).parent
                settings["runtime_env"] = {"py_modules": [str(package)]}
        main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _init(settings)
        except Exception as error:
            reason = _lines(error)[0]
            if self._address is None:
                raise FocusLabError(
                    f"Ray: does not start on this machine, got {reason}; see whether processors, "
                    "memory or disk are exhausted, then run the same command again: it continues"
                ) from error
            raise ClusterUnreachableError(
                f"--address: no Ray cluster answers, got {self._address!r}: {reason}; "
                "start one with `ray start --head`, and check RAY_AUTH_TOKEN"
            ) from None
        if main_thread:
            # Ray's own would end this process before a word is written down.
            signal.signal(signal.SIGTERM, handler)
        self._started = True

    @property
    def concurrent_trials(self) -> int:
        """How many trials the cluster has room for; 1 before it is started.

        Raises:
            UserError: this machine has no room for a single trial.
        """
        if not self._started:
            return 1
        import ray

        needs = self._needs()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        workers = sum(
            min(int(node["Resources"].get(name.upper(), 0.0) / n) for name, n in needs.items() if n)
            for node in nodes
            if node["Alive"]
        )
        # All workers of a trial start at once or not at all: trials are counted by whole gangs.
        trials = workers // self._compute.workers
        if trials == 0 and self._address is None:
            raise UserError(
                f"compute.workers: this machine has no room for a trial, got "
                f"{self._compute.workers} workers; there is room for {workers}"
            )
        # A cluster may grow; whether it does within compute.placement_timeout_s is seen then.
        return max(1, min(trials, self._side_by_side or trials))

    def _needs(self) -> dict[str, float]:
        """Resources of a worker.

        A trial that would take a GPU asks Ray for one, or for its share of one: otherwise all
        trials of a machine would sit on its first GPU.

        Raises:
            UserError: this machine has no room for a single worker.
        """
        import ray

        compute = self._compute
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = compute.gpus_per_worker
        if not gpus and compute.device != "cpu" and total.get("GPU"):
            gpus = 1.0
        needs = {"cpu": compute.cpus_per_worker, "gpu": gpus}
        for name, wanted in needs.items():
            there = total.get(name.upper(), 0.0)
            if wanted > there and self._address is None:
                raise UserError(
                    f"compute.{name}s_per_worker: no machine has room for a trial, got {wanted:g}; "
                    f"Ray has {there:g} {name.upper()}s"
                )
        return needs

    def stop(self) -> None:
        """Leave Ray, and end it if it was ours."""
        import ray

        if self._started:
            ray.shutdown()
            self._started = False

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function, called on a machine that has room for a worker.

        Raises:
            FocusLabError: the function failed, or its process was lost.
        """
        self.start()
        import ray

        needs = self._needs()
        remote = ray.remote(num_cpus=needs["cpu"], num_gpus=needs["gpu"])(function)
        try:
            return cast(T, ray.get(remote.remote(*arguments)))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, FocusLabError):
                raise cause from None
            reason = _lines(cause or error)[-1]
            raise FocusLabError(
                f"Ray: what was to be measured failed on a worker, got {reason}; see the log of "
                "the cluster"
            ) from error

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        """Carry out all jobs.

        Raises:
            KeyboardInterrupt: a person interrupted.
            UserError: the cluster has no room for a single worker.
        """
        import ray
        from ray import tune

        self.start()
        by_id = {job.trial_id: job for job in jobs}
        scratch = Path(tempfile.mkdtemp(prefix="focus-lab-tune-"))
        needs = self._needs()
        several = self._compute.workers > 1
        relay = _make_relay(listener, by_id)
        handler = signal.getsignal(signal.SIGINT)
        address = ray.get_runtime_context().gcs_address
        try:
            with HeadWatch(address, listener.note):
                tune.Tuner(
                    tune.with_resources(
                        tune.with_parameters(
                            train_trial,
                            jobs=by_id,
                            compute=self._compute,
                            needs=needs,
                            origin=Path.cwd(),
                        ),
                        {"cpu": 0.0, _HEAD: 0.001} if several else needs,
                    ),
                    param_space={"trial_id": tune.grid_search(list(by_id))},
                    tune_config=tune.TuneConfig(
                        reuse_actors=True,
                        max_concurrent_trials=(
                            self.concurrent_trials if several else self._side_by_side
                        ),
                    ),
                    run_config=tune.RunConfig(
                        name="trials",
                        storage_path=str(scratch),
                        verbose=0,
                        callbacks=[relay],
                        failure_config=tune.FailureConfig(max_failures=self._compute.max_failures),
                    ),
                ).fit()
        except Exception as error:
            # Tune wraps what a callback raises into a text: the listener's own error is the cause.
            raise relay.error or error from None
        finally:
            # Tune leaves its own handler, which would swallow the next Ctrl-C.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)
            shutil.rmtree(scratch, ignore_errors=True)
        if relay.open:
            # Tune catches Ctrl-C, stops its trials and returns as if all were well.
            raise KeyboardInterrupt


def train_trial(
    config: dict[str, Any],
    jobs: dict[str, TrialJob],
    compute: ComputeSpec,
    needs: dict[str, float],
    origin: Path,
) -> None:
    """Tune's trainable, in an actor. Errors are outcomes: only lost processes are Tune's business.

    Args:
        config: names the trial.
        jobs: by trial id.
        compute: of all trials.
        needs: CPUs and GPUs of a worker.
        origin: the driver's folder, which relative paths of specs start from.
    """
    from ray import tune

    job = jobs[config["trial_id"]]
    if origin.is_dir():
        # Tune has changed to a folder of its own.
        os.chdir(origin)
    training = TrainingSpec.model_validate(job.spec["training"])
    images = training.batch_size // compute.workers // training.accumulation
    recovery = Recovery(job.folder, compute, max(1, images))
    while True:
        failure = _attempt(job, compute, needs, origin, recovery.parts)
        if failure is None:
            return
        decision = recovery.decide(failure)
        told = {"kind": decision.kind, "message": decision.failure.message}
        if decision.action == "fail":
            tune.report({OUTCOME: FAILURE, FAILURE: told})
            return
        tune.report({AGAIN: told})


def _attempt(
    job: TrialJob, compute: ComputeSpec, needs: dict[str, float], origin: Path, parts: int
) -> Failure | None:
    """Train to the end and report it, or answer why not."""
    from ray import tune

    try:
        if compute.workers > 1:
            history = train_with_workers(job, compute, needs, origin, parts)
        else:
            history = _train_alone(job, compute, parts)
    except AttemptFailedError as error:
        return error.failure
    except Exception as error:
        # Ends with its traceback, which holds the tensors of an attempt that was too large.
        return explain_failure(error, job.folder)
    tune.report({OUTCOME: "success", HISTORY: history})
    return None


def _train_alone(
    job: TrialJob, compute: ComputeSpec, parts: int
) -> list[tuple[int, dict[str, float]]]:
    """Train in this process."""
    from ray import tune

    from focus_lab.lab.worker import carry_out
    from focus_lab.training.watchdog import Watchdog, clear_stalls
    from focus_lab.training.workers import Workers

    clear_stalls(job.folder)
    with Watchdog(job.folder, 0, compute.stall_timeout_s) as watchdog:

        def report(epoch: int, metrics: dict[str, float]) -> None:
            # Until the driver has taken it: that may wait for the tracker.
            with watchdog.resting():
                tune.report({EPOCH: epoch, METRICS: metrics})

        return carry_out(job, report, Workers(watchdog=watchdog.goes_on), parts)


def _init(settings: dict[str, Any]) -> None:
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(**settings)
            return
        except Exception as error:
            # A node that does not start in time is a bare Exception of Ray's. What is left of it
            # ends with this process.
            if settings["address"] != "local" or type(error) is not Exception or attempt == _STARTS:
                raise


def _lines(error: BaseException) -> list[str]:
    """What an error says; its kind where it says nothing."""
    return str(error).strip().splitlines() or [type(error).__name__]


def _make_relay(listener: Listener, jobs: dict[str, TrialJob]) -> Any:
    """Tune's callback that tells the listener; made here, because its base class needs ray."""
    from ray.tune import Callback as TuneCallback

    class Relay(TuneCallback):
        def __init__(self) -> None:
            self.open = set(jobs)
            self.error: Exception | None = None

        def __reduce__(self) -> tuple[type[TuneCallback], tuple[()]]:
            # Tune pickles its callbacks into a state that is never restored.
            return TuneCallback, ()

        def _tell(self, call: Callable[..., None], *what: Any) -> None:
            try:
                call(*what)
            except Exception as error:
                self.error = error
                raise

        def on_trial_start(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            # A process may die between its trial's last word and its own end: Tune starts it again.
            if trial.config["trial_id"] in self.open:
                self._tell(listener.started, trial.config["trial_id"])

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            trial_id = trial.config["trial_id"]
            if trial_id not in self.open:
                return
            if OUTCOME not in result:
                if AGAIN in result:
                    self._tell(listener.again, trial_id, Failure(**result[AGAIN]))
                elif EPOCH in result:
                    self._tell(listener.epoch, trial_id, result[EPOCH], result[METRICS])
                return
            self.open.discard(trial_id)
            if result[OUTCOME] == FAILURE:
                self._tell(listener.failed, trial_id, Failure(**result[FAILURE]))
            else:
                self._tell(listener.succeeded, trial_id, result[HISTORY])

        def on_trial_error(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            trial_id = trial.config["trial_id"]
            if trial_id in self.open:
                self.open.discard(trial_id)
                message = (
                    "compute.max_failures: the worker was lost too often, got "
                    f"{trial.num_failures} times; look for a full memory or a node that went away, "
                    "then run the same command"
                )
                failure = explain_stalls(jobs[trial_id].folder) or Failure(LOST, message)
                self._tell(listener.failed, trial_id, failure)

    return Relay()
