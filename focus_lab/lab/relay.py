"""What Tune sees of trials, told to the listener; and how trials go on whose attempts failed.

Tune restarts what our relay does not end: every failed attempt, whether its process told a reason
or died, comes here once, is decided upon and written down. Tune's own counting is turned off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.stopper import NoopStopper

from focus_lab.lab.executor import Listener, TrialJob
from focus_lab.lab.failure import (
    LOST,
    NO_ROOM,
    OUT_OF_MEMORY,
    PREEMPTED,
    TAKEN_BACK,
    Failure,
    says_no_memory,
)
from focus_lab.lab.recovery import Decision, Recovery
from focus_lab.lab.train_workers import EPOCH, METRICS, explain_stalls
from focus_lab.lab.tune_trial import ATTEMPT, FAILURE, HISTORY, OUTCOME, TRIAL_ID
from focus_lab.specs.training import ComputeSpec

_RUNNING = "RUNNING"


class Relay(Callback):
    """Tune's callback that tells the listener, in the driver's process.

    Args:
        listener: told each thing once.
        jobs: by trial id.
        recoveries: by trial id; decide how each goes on.
        compute: of all trials.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        listener: Listener,
        jobs: Mapping[str, TrialJob],
        recoveries: Mapping[str, Recovery],
        compute: ComputeSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = set(jobs)
        """Trials that have not come to their end."""
        self.error: Exception | None = None
        """What the listener raised."""
        self.gave_up = False
        """Whether there was no room for any trial, too long."""
        self._listener, self._jobs, self._recoveries = listener, jobs, recoveries
        self._compute, self._clock = compute, clock
        self._told: dict[str, Failure] = {}
        self._counted: dict[str, int] = {}
        self._roomless: set[str] = set()
        self._idle_since: float | None = None

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """Tune pickles its callbacks into a state that is never restored."""
        return Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """An attempt begins."""
        trial_id = trial.config[TRIAL_ID]
        if trial_id in self.open:
            self._tell(self._listener.started, trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial says something. Tune repeats the last words of one that has returned."""
        trial_id = trial.config[TRIAL_ID]
        if trial_id not in self.open:
            return
        if EPOCH in result:
            self._roomless.discard(trial_id)
            self._tell(self._listener.epoch, trial_id, result[EPOCH], result[METRICS])
        elif HISTORY in result:
            self.open.discard(trial_id)
            self._tell(self._listener.succeeded, trial_id, result[HISTORY])
        elif OUTCOME in result:
            self._end(trial_id, self._recoveries[trial_id].decide(Failure(**result[FAILURE])))
        elif FAILURE in result:
            # Its process ends with it, and comes to `failed`.
            self._told[trial_id] = Failure(**result[FAILURE])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has ended a trial by itself: it does not start it again, whatever was decided."""
        trial_id = trial.config[TRIAL_ID]
        if trial_id in self.open:
            said = f"Ray: a trial's process could not be started, got {_first_line(trial)}"
            self._end(trial_id, self._recoveries[trial_id].give_up(Failure(LOST, said)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Give up when no trial could be started for too long, and none gives room back."""
        running = any(trial.status == _RUNNING for trial in trials)
        if running or not self.open:
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = self._clock()
        patience = self._compute.placement_timeout_s
        if self._clock() - self._idle_since < patience:
            return
        self.gave_up = True
        failure = Failure(
            NO_ROOM,
            f"compute.placement_timeout_s: no machine had room for a worker, got none within "
            f"{patience:g} s; lower what a worker needs, add machines, or wait longer",
        )
        for trial_id in sorted(self.open):
            self._end(trial_id, self._recoveries[trial_id].give_up(failure))

    def failed(self, trial: Any, trials: list[Any]) -> None:
        """An attempt has ended without its result: decide how the trial goes on.

        Args:
            trial: Tune's, whose next attempt begins as its config says.
            trials: all of Tune's.
        """
        trial_id = trial.config[TRIAL_ID]
        if trial_id not in self.open:
            # A process may die between its trial's last word and its own end.
            return
        death = self._death(trial)
        failure = self._told.pop(trial_id, death)
        recovery = self._recoveries[trial_id]
        crowded = any(
            other.status == _RUNNING and other.config[TRIAL_ID] not in {trial_id, *self._roomless}
            for other in trials
        )
        if failure.kind == NO_ROOM:
            self._roomless.add(trial_id)
        decision = recovery.decide(failure, crowded=crowded)
        if decision.action == "fail":
            self._end(trial_id, decision)
            return
        trial.set_config({**trial.config, ATTEMPT: asdict(recovery.attempt)})
        self._tell(self._listener.again, trial_id, decision.failure)

    def _end(self, trial_id: str, decision: Decision) -> None:
        self.open.discard(trial_id)
        self._tell(self._listener.failed, trial_id, decision.failure)

    def _death(self, trial: Any) -> Failure:
        """Why a process died that told nothing."""
        trial_id = trial.config[TRIAL_ID]
        # Tune counts no loss of a machine that was taken back.
        before = self._counted.get(trial_id, 0)
        self._counted[trial_id] = trial.num_failures
        attempt = self._recoveries[trial_id].attempt
        if stalled := explain_stalls(attempt.folder(self._jobs[trial_id].folder)):
            return stalled
        if trial.num_failures == before:
            return Failure(PREEMPTED, TAKEN_BACK)
        if says_no_memory(_last_error(trial)):
            return Failure(OUT_OF_MEMORY, "the worker exhausted its machine, and Ray ended it")
        return Failure(LOST, f"the worker was lost, got {_first_line(trial)}")

    def _tell(self, call: Callable[..., None], *what: Any) -> None:
        try:
            call(*what)
        except Exception as error:
            # Tune wraps what a callback raises into a text.
            self.error = error
            raise


class Order(FIFOScheduler):
    """First come, first served; asks the relay about failed attempts, and ends what it gave up.

    Tune asks its scheduler, and no callback, before it starts a trial again.
    """

    def __init__(self, relay: Relay) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._relay = relay

    def __reduce__(self) -> tuple[type[FIFOScheduler], tuple[()]]:
        """See `Relay`."""
        return FIFOScheduler, ()

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """An attempt has failed."""
        self._relay.failed(trial, tune_controller.get_trials())

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial waits to be started, for the first time or again."""
        if trial.config[TRIAL_ID] not in self._relay.open:
            tune_controller.stop_trial(trial)


class GaveUp(Stopper):
    """Ends the sweep when the relay gave up."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def __reduce__(self) -> tuple[type[Stopper], tuple[()]]:
        """See `Relay`."""
        return NoopStopper, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is ended by what it says."""
        return False

    def stop_all(self) -> bool:
        """Whether nothing more shall be started."""
        return self._relay.gave_up


class Quiet(TrialProgressCallback):
    """In place of Tune's own, which prints to stdout what becomes of a trial that is ended."""

    def __reduce__(self) -> tuple[type[Callback], tuple[()]]:
        """See `Relay`."""
        return Callback, ()

    def on_trial_result(self, *what: Any, **info: Any) -> None:
        """The relay tells it."""

    def on_trial_error(self, *what: Any, **info: Any) -> None:
        """The relay tells it."""

    def on_trial_complete(self, *what: Any, **info: Any) -> None:
        """The relay tells it."""


def _last_error(trial: Any) -> str:
    """What Tune wrote down of the newest failure; it keeps no error but as text."""
    try:
        written = Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return ""
    # A line before each says which failure it is.
    return written.rpartition("Failure # ")[2].partition("\n")[2]


def _first_line(trial: Any) -> str:
    lines = [line.strip() for line in _last_error(trial).splitlines() if line.strip()]
    return (lines or ["no word of it"])[0][:300]
