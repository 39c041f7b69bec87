"""The life cycle of a trial: states that know whether they are terminal; their transitions."""

from __future__ import annotations

import enum


class TrialState(enum.StrEnum):
    """Where a trial is in its life."""

    PENDING = "PENDING"
    """Waiting to be started, for the first time or again."""
    RUNNING = "RUNNING"
    """A worker trains it, or did until contact was lost."""
    SUCCEEDED = "SUCCEEDED"
    """Trained to its last epoch; never run again."""
    FAILED = "FAILED"
    """Ended without its result; the next sweep of the same spec tries it again."""
    CANCELLED = "CANCELLED"
    """A person ended it; only a person starts it again."""

    @property
    def is_terminal(self) -> bool:
        """Whether the trial stays so until a person does something."""
        return self in (TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED)


TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset({TrialState.RUNNING, TrialState.CANCELLED, TrialState.FAILED}),
    TrialState.RUNNING: frozenset(
        {TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED, TrialState.PENDING}
    ),
    TrialState.FAILED: frozenset({TrialState.PENDING}),
    TrialState.CANCELLED: frozenset({TrialState.PENDING}),
    TrialState.SUCCEEDED: frozenset(),
}
"""From -> allowed next states."""
