"""Trials under Ray Tune: those of one worker train inside Tune's own actors, which are reused.

Those of several workers start them from there.

Tune sees trial ids only. It schedules and starts processes; what a trial is, how far it came and
how it ended is known to the store, the trial's folder and the tracker, and whether it is started
again is decided by our relay. Nothing is restored from Tune's own state: after the death of the
driver a new Tuner gets the trials that are not done.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import focus_lab
from focus_lab.errors import ClusterUnreachableError, FocusLabError, UserError
from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.head_watch import HeadWatch
from focus_lab.lab.recovery import Recovery
from focus_lab.lab.tune_trial import TRIAL_ID, train_trial
from focus_lab.specs.training import ComputeSpec, TrainingSpec

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

        workers = self._room(self._needs())
        # All workers of a trial start at once or not at all: trials are counted by whole gangs.
        trials = workers // self._compute.workers
        if trials == 0 and self._address is None:
            raise UserError(
                f"compute.workers: this machine has no room for a trial, got "
                f"{self._compute.workers} workers; there is room for {workers}"
            )
        # A cluster may grow; whether it does within compute.placement_timeout_s is seen then.
        if trials == 0 and self._side_by_side:
            return self._side_by_side
        return max(1, min(trials, self._side_by_side or trials))

    def _room(self, needs: Mapping[str, float]) -> int:
        """How many workers fit on the machines that are there, if nobody else used them."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return sum(
            min(int(node["Resources"].get(name.upper(), 0.0) / n) for name, n in needs.items() if n)
            for node in nodes
            if node["Alive"]
        )

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
        # A cluster that is told to use GPUs may have none before it is asked for one.
        if not gpus and (
            compute.device == "cuda" or (compute.device == "auto" and total.get("GPU"))
        ):
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
            FocusLabError: the function failed, its process was lost, or it did not answer in time.
        """
        self.start()
        import ray

        needs = self._needs()
        remote = ray.remote(num_cpus=needs["cpu"], num_gpus=needs["gpu"])(function)
        # As long as a trial may wait for room, and then stand still.
        patience = self._compute.placement_timeout_s + self._compute.stall_timeout_s
        answer = remote.remote(*arguments)
        try:
            return cast(T, ray.get(answer, timeout=patience))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer, force=True)
            raise FocusLabError(
                "compute.placement_timeout_s: what was to be measured had no room or no end, got "
                f"no answer within {patience:g} s; add machines, lower what a worker needs, or "
                "wait longer"
            ) from None
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
        from focus_lab.lab.relay import GaveUp, Order, Quiet, Relay

        by_id = {job.trial_id: job for job in jobs}
        scratch = Path(tempfile.mkdtemp(prefix="focus-lab-tune-"))
        needs = self._needs()
        several = self._compute.workers > 1
        recoveries = {job.trial_id: self._recovery(job) for job in jobs}
        relay = Relay(listener, by_id, recoveries, self._compute)
        if self._room(needs) < self._compute.workers and self._address is not None:
            listener.note(
                f"compute.workers: no machines have room for a trial yet, got "
                f"{self._room(needs)} of {self._compute.workers} workers; waiting for machines, "
                f"{self._compute.placement_timeout_s:g} s at most (compute.placement_timeout_s)"
            )
        handler = signal.getsignal(signal.SIGINT)
        address = ray.get_runtime_context().gcs_address
        try:
            with HeadWatch(address, listener.note):
                tune.Tuner(
                    tune.with_resources(
                        tune.with_parameters(
                            train_trial,
                            jobs=by_id,
                            attempts={name: past.attempt for name, past in recoveries.items()},
                            compute=self._compute,
                            needs=needs,
                            origin=Path.cwd(),
                        ),
                        {"cpu": 0.0, _HEAD: 0.001} if several else needs,
                    ),
                    param_space={TRIAL_ID: tune.grid_search(list(by_id))},
                    tune_config=tune.TuneConfig(
                        scheduler=Order(relay),
                        reuse_actors=True,
                        max_concurrent_trials=(
                            self.concurrent_trials if several else self._side_by_side
                        ),
                    ),
                    run_config=tune.RunConfig(
                        name="trials",
                        storage_path=str(scratch),
                        verbose=0,
                        callbacks=[relay, Quiet()],
                        stop=GaveUp(relay),
                        # Without end by itself: the relay ends it.
                        failure_config=tune.FailureConfig(max_failures=-1),
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

    def _recovery(self, job: TrialJob) -> Recovery:
        training = TrainingSpec.model_validate(job.spec["training"])
        images = -(-training.batch_size // (self._compute.workers * training.accumulation))
        return Recovery(job.folder, self._compute, images)


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
