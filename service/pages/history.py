"""The history of an experiment: its events as sentences, and where its trials were last."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from focus_lab.lab.queue.events import Cursor, Event, EventLog

_BATCH = 500
_LINES = 400
"""Lines that are kept of one experiment, the newest."""
_EXPERIMENTS = 64
"""Histories that are kept; others are read anew."""

_WORDS = {"cancel": "cancelled", "pause": "paused", "resume": "resumed", "retry": "retried"}


@dataclass(frozen=True)
class Line:
    """Something that happened."""

    at: datetime
    actor: str
    text: str
    bad: bool = False
    """Whether something went wrong."""


@dataclass(frozen=True)
class Mark:
    """Where a trial was when it was last heard of."""

    state: str
    epoch: int
    loss: float | None
    ap: float | None


@dataclass
class History:
    """What is known of one experiment up to `cursor`."""

    cursor: Cursor = field(default_factory=Cursor)
    lines: deque[Line] = field(default_factory=lambda: deque(maxlen=_LINES))
    count: int = 0
    """Of all lines, those included that are not kept."""
    trials: dict[str, Mark] = field(default_factory=dict)
    """By name."""

    def add(self, event: Event) -> None:
        """Take the next event."""
        self.cursor = event.cursor
        line = self._line(event)
        if line is not None:
            self.lines.append(line)
            self.count += 1

    def _line(self, event: Event) -> Line | None:
        if event.kind != "trial":
            text, bad = _sentence(event)
            return Line(event.at, event.actor, text, bad)
        data = event.data
        name, state = str(data.get("trial")), str(data.get("state"))
        before = self.trials.get(name)
        loss, ap = _number(data.get("loss")), _number(data.get("ap"))
        if before is not None:
            loss, ap = before.loss if loss is None else loss, before.ap if ap is None else ap
        self.trials[name] = Mark(state, int(data.get("epoch") or 0), loss, ap)
        # Epochs are curves; a line is worth what a trial has become.
        if before is not None and before.state == state:
            return None
        message = data.get("message")
        words = {"RUNNING": "runs", "SUCCEEDED": "is done", "PENDING": "waits again"}
        text = f"trial {name} {words.get(state, f'is {state.lower()}')}"
        text += f": {message}" if message else ""
        return Line(event.at, event.actor, text, state == "FAILED")


class Histories:
    """Histories by experiment. Each look reads only what has happened since the last one."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, History] = OrderedDict()
        self._reading = threading.Lock()

    def of(self, log: EventLog, experiment_id: str) -> History:
        """The history of an experiment until now; a copy."""
        with self._reading:
            history = self._known.setdefault(experiment_id, History())
            self._known.move_to_end(experiment_id)
            while len(self._known) > _EXPERIMENTS:
                self._known.popitem(last=False)
            while True:
                events = log.after(history.cursor, experiment_id=experiment_id, limit=_BATCH)
                for event in events:
                    history.add(event)
                if len(events) < _BATCH:
                    break
            return History(
                history.cursor, history.lines.copy(), history.count, dict(history.trials)
            )


def _sentence(event: Event) -> tuple[str, bool]:
    data = event.data
    if event.kind == "submitted":
        return f"submitted with priority {data.get('priority', 0)}", False
    if event.kind == "priority":
        return f"priority set to {data.get('priority')}", False
    if event.kind == "admitted":
        trials = data.get("trials")
        side = f", {trials} trials side by side" if trials and trials != 1 else ""
        return f"attempt {data.get('attempt')} admitted with {data.get('granted')}{side}", False
    if event.kind == "started":
        return f"attempt {data.get('attempt')} runs", False
    if event.kind == "ended":
        outcome, message = data.get("outcome"), data.get("message")
        text = f"attempt {data.get('attempt')} ended: {outcome}"
        return text + (f"; {message}" if message else ""), outcome in ("failed", "lost")
    if event.kind == "note":
        return str(data.get("text")), False
    return _WORDS.get(event.kind, event.kind), False


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
