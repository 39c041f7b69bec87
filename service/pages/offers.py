"""What is offered to a visitor: only what they may do, and what would change something."""

from __future__ import annotations

from dataclasses import dataclass

from focus_lab.lab.queue.entry import Entry
from focus_lab.lab.queue.states import ACTIONS, Action
from service.auth import Principal

_ASKED = {
    Action.CANCEL: "What runs is stopped; what is done is kept. It can be retried later.",
    Action.PAUSE: "Its driver ends and its capacity goes to others; trials keep what they have.",
    Action.RESUME: "It takes its place in the queue again.",
    Action.RETRY: "Failed and cancelled trials are tried again; what succeeded is kept.",
}


@dataclass(frozen=True)
class Offer:
    """An action with what is said before it is done."""

    action: Action
    question: str
    grave: bool
    """Whether work stops by it."""


def offers(principal: Principal, entry: Entry) -> list[Offer]:
    """The actions on an experiment."""
    if not principal.may_change(entry):
        return []
    return [
        Offer(action, _ASKED[action], action is Action.CANCEL)
        for action, targets in ACTIONS.items()
        if targets.get(entry.state, entry.state) is not entry.state
    ]
