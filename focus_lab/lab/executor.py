"""Executors carry out trials and tell a listener: the protocol, and one in this process."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from focus_lab.errors import FocusLabError

ERROR_LOG = "error.txt"


@dataclass(frozen=True)
class TrialJob:
    """What an executor needs to carry out a trial."""

    trial_id: str
    name: str
    spec: dict[str, Any]
    """The trial's spec as JSON data."""
    folder: Path
    """The trial's folder, the same path on every machine that may carry it out."""


@dataclass(frozen=True)
class Failure:
    """Why a trial ended without its result."""

    kind: str
    """Class of the failure: the exception's name."""
    message: str
    """A sentence for the user."""


class Listener(Protocol):
    """Told by an executor what happens; called in the driver's process, one call at a time."""

    def started(self, trial_id: str) -> None:
        """A worker has begun with the trial."""

    def again(self, trial_id: str, failure: Failure) -> None:
        """An attempt has failed, and the next one begins by itself; the message says how."""

    def epoch(self, trial_id: str, epoch: int, metrics: dict[str, float]) -> None:
        """An epoch has ended. After a lost worker, epochs may be told again."""

    def succeeded(self, trial_id: str, history: list[tuple[int, dict[str, float]]]) -> None:
        """The trial is trained to its end; `history` has every epoch."""

    def failed(self, trial_id: str, failure: Failure) -> None:
        """The trial ended without its result."""


class Executor(Protocol):
    """Carries out trials."""

    def start(self) -> None:
        """Set up what it needs; safe to call ahead, and again."""

    def stop(self) -> None:
        """Give back what was set up."""

    @property
    def concurrent_trials(self) -> int:
        """How many trials run side by side."""

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        """Carry out all jobs; returns when each has succeeded, failed, or was given up.

        Raises:
            KeyboardInterrupt: a person interrupted; unfinished trials can be continued.
        """


def explain_failure(error: BaseException, folder: Path) -> Failure:
    """A failure in the user's words; the traceback goes into the trial's folder."""
    kind = type(error).__name__
    if isinstance(error, FocusLabError):
        return Failure(kind, str(error))
    text = "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ERROR_LOG).write_text(text)
    except OSError:
        pass
    if "out of memory" in str(error).lower():
        remedy = "lower training.batch_size, raise training.accumulation or lower the image size"
        return Failure("OutOfMemory", f"memory is exhausted, got {error}; {remedy}")
    return Failure(kind, f"{kind}: {error}; the traceback is in {folder / ERROR_LOG}")


class InProcessExecutor:
    """Carries out one trial after the other in this process: for debugging and tests."""

    concurrent_trials = 1

    def start(self) -> None:
        """There is nothing to set up."""

    def stop(self) -> None:
        """There is nothing to give back."""

    def run(self, jobs: Sequence[TrialJob], listener: Listener) -> None:
        """Carry out all jobs in order."""
        # Here and not above: whoever only starts trials elsewhere needs no torch.
        from focus_lab.lab.worker import carry_out

        for job in jobs:
            listener.started(job.trial_id)
            try:
                result = carry_out(job, partial(listener.epoch, job.trial_id))
            except Exception as error:
                listener.failed(job.trial_id, explain_failure(error, job.folder))
            else:
                listener.succeeded(job.trial_id, result)
