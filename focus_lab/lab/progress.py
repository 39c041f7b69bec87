"""Progress of an experiment, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

PROGRESS = "progress.json"
"""File in a trial's folder where its worker writes the step it is at."""

_WORDS = {"RUNNING": "running", "PENDING": "waiting", "SUCCEEDED": "done", "FAILED": "failed"}


@dataclass
class TrialProgress:
    """What the table shows of one trial."""

    name: str
    epochs: int
    folder: Path
    state: str = "PENDING"
    epoch: int = 0
    """Epochs done."""
    loss: float | None = None
    ap: float | None = None
    first_epoch: int = 0
    """Epochs that were done when it was started this time."""
    started_at: float | None = None
    ended_at: float | None = None
    message: str | None = None

    def done(self) -> float:
        """Epochs done, with the share of the running one that its worker has written."""
        if self.state != "RUNNING":
            return float(self.epoch)
        try:
            step = json.loads((self.folder / PROGRESS).read_text())
        except (OSError, ValueError):
            return float(self.epoch)
        if step["epoch"] != self.epoch + 1:
            return float(self.epoch)
        self.loss = step["loss"]
        return self.epoch + float(step["step"]) / max(1.0, float(step["steps"]))

    def seconds_an_epoch(self) -> float | None:
        """Measured since it was started this time."""
        if self.started_at is None:
            return None
        trained = self.done() - self.first_epoch
        until = self.ended_at or time.monotonic()
        return (until - self.started_at) / trained if trained > 0.05 else None

    def remaining(self) -> float | None:
        """Seconds to go, once something is measured."""
        pace = self.seconds_an_epoch()
        return pace * (self.epochs - self.done()) if pace is not None else None


class Progress(Protocol):
    """Shown while an experiment runs."""

    trials: dict[str, TrialProgress]
    """By trial id, in the order of the plan."""

    def changed(self, trial: TrialProgress, event: str) -> None:
        """Something worth a line happened to a trial."""

    def note(self, text: str) -> None:
        """Say something about the experiment."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass
class PlainProgress:
    """A line an event."""

    console: Console
    trials: dict[str, TrialProgress] = field(default_factory=dict)
    concurrent: int = 1

    def changed(self, trial: TrialProgress, event: str) -> None:
        """Print the event."""
        parts = [trial.name, event]
        if event.startswith("epoch"):
            parts += [f"loss {trial.loss:.3f}"] if trial.loss is not None else []
            parts += [f"AP {trial.ap:.3f}"] if trial.ap is not None else []
            if left := time_left(list(self.trials.values()), self.concurrent):
                parts.append(f"about {duration(left)} to go in all")
        self.console.print("  ".join(parts), highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print it."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


@dataclass
class LiveProgress:
    """One table, redrawn."""

    console: Console
    trials: dict[str, TrialProgress] = field(default_factory=dict)
    concurrent: int = 1

    def __post_init__(self) -> None:
        self._live = Live(
            console=self.console, get_renderable=self._table, refresh_per_second=2, transient=False
        )

    def changed(self, trial: TrialProgress, event: str) -> None:
        """Drawn at the next refresh; failures stay above the table."""
        if trial.state == "FAILED":
            self.console.print(f"{trial.name}: {trial.message}", markup=False)

    def note(self, text: str) -> None:
        """Print it above the table."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("trial", "state", "epoch", "loss", "AP", "to go"):
            table.add_column(heading, justify="left" if heading in ("trial", "state") else "right")
        for trial in self.trials.values():
            done = trial.done()
            left = trial.remaining() if trial.state == "RUNNING" else None
            table.add_row(
                trial.name,
                _WORDS.get(trial.state, trial.state.lower()),
                f"{done:.1f}/{trial.epochs}",
                "" if trial.loss is None else f"{trial.loss:.2f}",
                "" if trial.ap is None else f"{trial.ap:.3f}",
                "" if left is None else duration(left),
            )
        left = time_left(list(self.trials.values()), self.concurrent)
        table.caption = f"about {duration(left)} to go" if left else None
        return table

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw a last time."""
        self._live.__exit__(None, None, None)


def make_progress(console: Console, concurrent: int) -> Progress:
    """The live table on a terminal, lines elsewhere; `concurrent` trials run side by side."""
    kind = LiveProgress if console.is_terminal else PlainProgress
    return kind(console, concurrent=concurrent)


def time_left(trials: Sequence[TrialProgress], concurrent: int) -> float | None:
    """Seconds until all trials are done at the pace measured so far; None before there is one."""
    paces = [pace for trial in trials if (pace := trial.seconds_an_epoch()) is not None]
    if not paces:
        return None
    pace = sum(paces) / len(paces)
    open_trials = [trial for trial in trials if trial.state in ("RUNNING", "PENDING")]
    work = [trial.remaining() or pace * (trial.epochs - trial.done()) for trial in open_trials]
    return max([sum(work) / max(1, concurrent), *work], default=None)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min, 2 h 05 min."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
