"""Executors carry out trials and tell a listener: the protocol, and one in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from focus_lab.lab.failure import Failure, explain_failure
from focus_lab.lab.recovery import decide
from focus_lab.specs.training import ComputeSpec

T = TypeVar("T")


@dataclass(frozen=True)
class TrialJob:
    """What an executor needs to carry out a trial."""

    trial_id: str
    name: str
    spec: dict[str, Any]
    """The trial's spec as JSON data."""
    folder: Path
    """The trial's folder, the same path on every machine that may carry it out."""


class Listener(Protocol):
    """Told by an executor what happens; called in the driver's process, one call at a time."""

    def started(self, trial_id: str) -> None:
        """A worker has begun with the trial."""

    def again(self, trial_id: str, failure: Failure) -> None:
        """An attempt has failed; the next one starts by itself when there is room for it."""

    def epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch has ended. After a lost worker, epochs may be told again."""

    def succeeded(self, trial_id: str, history: list[tuple[int, dict[str, float]]]) -> None:
        """The trial is trained to its end; `history` has every epoch."""

    def failed(self, trial_id: str, failure: Failure) -> None:
        """The trial ended without its result."""

    def note(self, text: str) -> None:
        """Something worth saying that concerns all trials; may come from another thread."""


class Executor(Protocol):
    """Carries out trials."""

    def start(self) -> None:
        """Set up what it needs; safe to call ahead, and again."""

    def stop(self) -> None:
        """Give back what was set up."""

    @property
    def concurrent_trials(self) -> int:
        """How many trials run side by side."""

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function, called where a trial would run and with what one has."""

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        """Carry out all jobs; returns when each has succeeded, failed, or was given up.

        Raises:
            KeyboardInterrupt: a person interrupted; unfinished trials can be continued.
        """


class InProcessExecutor:
    """Carries out one trial after the other in this process: for debugging and tests."""

    concurrent_trials = 1

    def start(self) -> None:
        """There is nothing to set up."""

    def stop(self) -> None:
        """There is nothing to give back."""

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function, called here."""
        return function(*arguments)

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        """Carry out all jobs in order."""
        # Here and not above: whoever only starts trials elsewhere needs no torch.
        from focus_lab.lab.worker import carry_out

        for job in jobs:
            listener.started(job.trial_id)
            try:
                result = carry_out(job, partial(listener.epoch, job.trial_id))
            except Exception as error:
                failure = explain_failure(error, job.folder)
                # Nothing is tried again here; what the user can do is said all the same.
                decision = decide(failure, [], ComputeSpec(max_failures=0, max_preemptions=0), 1)
                said = decision.failure if decision.action == "fail" else failure
                listener.failed(job.trial_id, said)
            else:
                listener.succeeded(job.trial_id, result)
