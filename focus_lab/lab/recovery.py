"""What to do when an attempt at a trial has failed: a pure decision, and the record of decisions.

Each class of failure has its own budget, so that none is repeated without end, and a trial that a
machine failed is not spent on a trial that fails by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from focus_lab.lab.failure import LOST, NO_ROOM, OUT_OF_MEMORY, PREEMPTED, STALLED, Failure
from focus_lab.specs.training import ComputeSpec

RECORD = "recovery.json"
"""File in a trial's folder: every failure and what was decided, oldest first."""

_OF_THE_MACHINES = (LOST, STALLED, NO_ROOM)
_MOST_HALVINGS = 6
"""An effective batch has seldom more than 64 images a worker."""


@dataclass(frozen=True)
class Decision:
    """How a trial goes on after a failure."""

    kind: str
    """Of the failure."""
    message: str
    """What went wrong, as a sentence."""
    action: Literal["retry", "halve", "fail"]
    """Again from the last checkpoint; the same with half the micro-batch; or give up."""
    remedy: str
    """What the user can do, or what is done instead."""

    @property
    def failure(self) -> Failure:
        """The failure with its remedy."""
        return Failure(self.kind, f"{self.message}; {self.remedy}" if self.remedy else self.message)


def decide(
    failure: Failure, past: Sequence[Decision], compute: ComputeSpec, images_a_worker: int
) -> Decision:
    """Decide what to do after a failure.

    Args:
        failure: what happened.
        past: what was decided before in this sweep, oldest first.
        compute: budgets.
        images_a_worker: images that a worker computes at a time, at first.
    """
    decision = Decision(failure.kind, failure.message, "fail", "")
    spent = sum(1 for earlier in past if earlier.kind == failure.kind)
    if failure.kind in _OF_THE_MACHINES:
        # One budget for all: a machine that hangs, or is not there any more, is one that fails.
        spent = sum(1 for earlier in past if earlier.kind in _OF_THE_MACHINES)
        return _within(decision, spent, compute.max_failures, "compute.max_failures")
    if failure.kind == PREEMPTED:
        return _within(decision, spent, compute.max_preemptions, "compute.max_preemptions")
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
        folder: the trial's folder.
        compute: budgets.
        images_a_worker: images that a worker computes at a time, at first.
    """

    def __init__(self, folder: Path, compute: ComputeSpec, images_a_worker: int) -> None:
        self._path = folder / RECORD
        self._compute, self._images = compute, images_a_worker
        self._now: list[Decision] = []
        self._before = _read(self._path)

    @property
    def parts(self) -> int:
        """Into how many micro-batches each of the spec's is divided, after all that happened."""
        halved = [d for d in (*self._before, *self._now) if d.action == "halve"]
        return int(2 ** len(halved))

    def decide(self, failure: Failure) -> Decision:
        """Decide, and write it down. Budgets are those of a sweep: again is a new start."""
        halvings = [decision for decision in self._before if decision.action == "halve"]
        past = [*halvings, *self._now]
        decision = decide(failure, past, self._compute, self._images)
        self._now.append(decision)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        rows = [asdict(decision) for decision in (*self._before, *self._now)]
        partial.write_text(json.dumps(rows, indent=1))
        partial.replace(self._path)
        return decision


def _read(path: Path) -> list[Decision]:
    try:
        return [Decision(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []
