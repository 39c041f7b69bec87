"""A stopwatch for the parts of a training step, put around them from outside."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from focus_lab.training.loop import TrainingLoop

PHASES = ("data", "transfer", "forward", "matching", "losses", "backward", "optimizer", "rest")
"""Parts of a step: waiting for the loader, host to device, the model, the assignment, the losses,
gradients with the one transfer that is logged, clipping and step, everything else."""


class Laps:
    """Books the time since the last lap to the phase that ends now.

    Args:
        device: waited for at the end of each lap, if it is a GPU: its work is then booked where it
            was asked for, and nothing overlaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.running = False
        """Whether laps count; a stopwatch at rest costs nothing and waits for nobody."""
        self.steps: list[dict[str, float]] = []
        """Of every step, seconds by phase; they add up to the whole step."""
        self.begin_step()

    def begin_step(self) -> None:
        """A step begins now."""
        self._last = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)

    def lap(self, phase: str) -> None:
        """`phase` ends now."""
        if not self.running:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now

    def end_step(self) -> None:
        """A step ends now."""
        self.lap("rest")
        if self.running:
            self.steps.append(self._seconds)

    def around(self, owner: object, name: str, before: str, inside: str) -> None:
        """Let calls of an attribute of `owner` end the phase `before` and be the phase `inside`."""
        original = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self.lap(before)
            result = original(*arguments, **named)
            self.lap(inside)
            return result

        setattr(owner, name, timed)

    def follow(self, loop: TrainingLoop) -> None:
        """Book what a loop does; its loader is the caller's to book."""
        criterion = loop.criterion
        self.around(loop, "_backward", "rest", "backward")
        self.around(loop, "_optimizer_step", "rest", "optimizer")
        self.around(criterion, "matcher", "losses", "matching")
        self.around(criterion, "total", "losses", "losses")
        loop.model.register_forward_pre_hook(lambda *_: self.lap("transfer"))
        loop.model.register_forward_hook(lambda *_: self.lap("forward"))


def medians(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the seconds by phase, and of the whole `step`."""
    found = {phase: statistics.median(step[phase] for step in steps) for phase in PHASES}
    return {"step": statistics.median(sum(step.values()) for step in steps)} | found
