"""What to do when an attempt at a trial has failed: a pure decision, and the record of decisions.

Each class of failure has its own budget, so that none is repeated without end, and a trial that a
machine failed is not spent on a trial that fails by itself. The driver decides for all trials: it
outlives their processes, and sees who else takes room.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from focus_lab.lab.failure import (
    LOST,
    NO_ROOM,
    OUT_OF_MEMORY,
    PREEMPTED,
    STALLED,
    STORAGE_AWAY,
    Failure,
)
from focus_lab.specs.training import ComputeSpec
from focus_lab.training.whole_file import whole_file

RECORD = "recovery.json"
"""File in a trial's folder: every failure and what was decided, oldest first."""

_OF_THE_MACHINES = (LOST, STALLED, NO_ROOM)
_MOST_HALVINGS = 6
"""An effective batch has seldom more than 64 images a worker."""
_MOST_OUTAGES = 10
"""Of the storage: each attempt asks it for half a minute."""


@dataclass(frozen=True)
class Attempt:
    """What one start of a trial begins with."""

    number: int = 0
    """How many failed before it, in earlier sweeps too."""
    parts: int = 1
    """Into how many smaller ones each micro-batch of the spec is divided."""

    def folder(self, trial: Path) -> Path:
        """Where in the trial's folder this attempt leaves what explains its end."""
        return trial / "attempts" / str(self.number)


@dataclass(frozen=True)
class Decision:
    """How a trial goes on after a failure."""

    kind: str
    """Of the failure."""
    message: str
    """What went wrong, as a sentence."""
    action: Literal["retry", "wait", "halve", "fail"]
    """Again from the last checkpoint; the same, but not counted; the same with half the
    micro-batch; or give up."""
    remedy: str
    """What the user can do, or what is done instead."""

    @property
    def failure(self) -> Failure:
        """The failure with its remedy."""
        return Failure(self.kind, f"{self.message}; {self.remedy}" if self.remedy else self.message)


def may_go_on(kind: str, compute: ComputeSpec) -> bool:
    """Whether a failure of this kind may be followed by another attempt."""
    if kind == OUT_OF_MEMORY:
        return compute.halve_on_out_of_memory
    return kind in (*_OF_THE_MACHINES, PREEMPTED, STORAGE_AWAY)


def decide(
    failure: Failure,
    past: Sequence[Decision],
    compute: ComputeSpec,
    images_a_worker: int,
    *,
    crowded: bool = False,
) -> Decision:
    """Decide what to do after a failure.

    Args:
        failure: what happened.
        past: what was decided before in this sweep, oldest first.
        compute: budgets.
        images_a_worker: images that a worker computes at a time, at first.
        crowded: whether other trials of the sweep have taken room, which they give back.
    """
    decision = Decision(failure.kind, failure.message, "fail", "")
    if failure.kind == NO_ROOM and crowded:
        return replace(decision, action="wait", remedy="waiting for the trials beside it")
    spent = sum(1 for earlier in past if earlier.kind == failure.kind)
    if failure.kind in _OF_THE_MACHINES:
        # One budget for all: a machine that hangs, or is not there any more, is one that fails.
        counted = [earlier for earlier in past if earlier.action != "wait"]
        spent = sum(1 for earlier in counted if earlier.kind in _OF_THE_MACHINES)
        return _within(decision, spent, compute.max_failures, "compute.max_failures")
    if failure.kind == PREEMPTED:
        return _within(decision, spent, compute.max_preemptions, "compute.max_preemptions")
    if failure.kind == STORAGE_AWAY:
        return _within(decision, spent, _MOST_OUTAGES, "a trial")
    if failure.kind == OUT_OF_MEMORY:
        if not compute.halve_on_out_of_memory:
            remedy = (
                "lower training.batch_size, raise training.accumulation, lower the image size, or "
                "set compute.halve_on_out_of_memory to true"
            )
            return replace(decision, remedy=remedy)
        halved = sum(1 for earlier in past if earlier.action == "halve")
        left, less = (-(-images_a_worker // 2**times) for times in (halved, halved + 1))
        if left <= 1 or halved >= _MOST_HALVINGS:
            remedy = "a single image does not fit: lower the image size or take larger machines"
            return replace(decision, remedy=remedy)
        remedy = f"going on with {less} instead of {left} images at a time"
        return replace(decision, action="halve", remedy=remedy)
    # What the trial does to itself, it would do again.
    return decision


def _within(decision: Decision, spent: int, budget: int, field: str) -> Decision:
    if spent < budget:
        return replace(
            decision, action="retry", remedy=f"going on, {budget - spent - 1} more times at most"
        )
    return replace(decision, remedy=f"that was once more than {field} allows, {budget}")


class Recovery:
    """The decisions of one trial, kept in its folder.

    Args:
        folder: the trial's folder, as the driver sees it.
        compute: budgets.
        images_a_worker: images that a worker computes at a time, at first.
    """

    def __init__(self, folder: Path, compute: ComputeSpec, images_a_worker: int) -> None:
        self._path = folder / RECORD
        self._compute, self._images = compute, images_a_worker
        self._now: list[Decision] = []
        self._before = _read(self._path)

    @property
    def attempt(self) -> Attempt:
        """The next attempt, after all that happened."""
        done = [*self._before, *self._now]
        return Attempt(len(done), 2 ** sum(1 for past in done if past.action == "halve"))

    def decide(self, failure: Failure, *, crowded: bool = False) -> Decision:
        """Decide, and write it down. Budgets are those of a sweep: again is a new start.

        Args:
            failure: of the attempt.
            crowded: see `decide`.
        """
        halvings = [decision for decision in self._before if decision.action == "halve"]
        past = [*halvings, *self._now]
        return self._keep(decide(failure, past, self._compute, self._images, crowded=crowded))

    def give_up(self, failure: Failure) -> Decision:
        """Write down that a trial ends that could not be started."""
        return self._keep(Decision(failure.kind, failure.message, "fail", ""))

    def _keep(self, decision: Decision) -> Decision:
        self._now.append(decision)
        rows = [asdict(decision) for decision in (*self._before, *self._now)]
        # On a full disk the sweep goes on without the record.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self._path) as partial:
                partial.write_text(json.dumps(rows, indent=1))
        return decision


def _read(path: Path) -> list[Decision]:
    try:
        return [Decision(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []
