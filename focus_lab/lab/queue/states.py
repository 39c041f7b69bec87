"""The life cycle of a submitted experiment: its states, and what a person may do in which."""

from __future__ import annotations

import enum


class QueueState(enum.StrEnum):
    """Where a submitted experiment is in its life."""

    QUEUED = "QUEUED"
    """Waits for its turn."""
    STARTING = "STARTING"
    """Admitted; its driver has been, or is about to be, started."""
    RUNNING = "RUNNING"
    """Its driver carries it out."""
    PAUSING = "PAUSING"
    """A person paused it; its driver is about to end."""
    PAUSED = "PAUSED"
    """Waits for a person; trials keep what they have."""
    CANCELLING = "CANCELLING"
    """A person cancelled it; its driver is about to end."""
    CANCELLED = "CANCELLED"
    """A person ended it."""
    SUCCEEDED = "SUCCEEDED"
    """Every trial has succeeded."""
    FAILED = "FAILED"
    """Ended without the result of every trial."""

    @property
    def is_terminal(self) -> bool:
        """Whether it stays so until a person does something, and nobody expects more of it."""
        return self in TERMINAL

    @property
    def is_admitted(self) -> bool:
        """Whether it holds capacity."""
        return self in ADMITTED


TERMINAL = frozenset({QueueState.CANCELLED, QueueState.SUCCEEDED, QueueState.FAILED})
ADMITTED = frozenset(
    {QueueState.STARTING, QueueState.RUNNING, QueueState.PAUSING, QueueState.CANCELLING}
)


class Action(enum.StrEnum):
    """What a person may do with a submitted experiment."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"


ACTIONS: dict[Action, dict[QueueState, QueueState]] = {
    Action.CANCEL: {
        QueueState.QUEUED: QueueState.CANCELLED,
        QueueState.PAUSED: QueueState.CANCELLED,
        QueueState.STARTING: QueueState.CANCELLING,
        QueueState.RUNNING: QueueState.CANCELLING,
        QueueState.PAUSING: QueueState.CANCELLING,
        QueueState.CANCELLING: QueueState.CANCELLING,
        QueueState.CANCELLED: QueueState.CANCELLED,
    },
    Action.PAUSE: {
        QueueState.QUEUED: QueueState.PAUSED,
        QueueState.STARTING: QueueState.PAUSING,
        QueueState.RUNNING: QueueState.PAUSING,
        QueueState.PAUSING: QueueState.PAUSING,
        QueueState.PAUSED: QueueState.PAUSED,
    },
    Action.RESUME: {
        QueueState.PAUSED: QueueState.QUEUED,
        QueueState.QUEUED: QueueState.QUEUED,
        # Its turn may come before somebody whose answer was lost asks again.
        QueueState.STARTING: QueueState.STARTING,
        QueueState.RUNNING: QueueState.RUNNING,
    },
    Action.RETRY: {
        QueueState.FAILED: QueueState.QUEUED,
        QueueState.CANCELLED: QueueState.QUEUED,
        QueueState.QUEUED: QueueState.QUEUED,
        QueueState.STARTING: QueueState.STARTING,
        QueueState.RUNNING: QueueState.RUNNING,
    },
}
"""Action -> state it is allowed in -> state that it leads to; where both are equal, nothing is to
do."""
