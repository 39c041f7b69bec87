"""How a worker talks to whoever started it: a small protocol, and an implementation in memory."""

from __future__ import annotations

from typing import Protocol

Metrics = dict[str, float]
"""Metric name (DESIGN's spelling, for example `coco/AP`) -> value."""


class Reporter(Protocol):
    """What `fit` needs from outside. Epochs are counted from 1."""

    def report(self, epoch: int, metrics: Metrics) -> None:
        """An epoch has ended; its checkpoint, if due, is already on disk."""

    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """`step` of `steps` of the running epoch is done; called now and then."""

    def should_stop(self) -> bool:
        """Whether the machine is about to be taken back; asked every few seconds.

        Every worker asks at the same steps, and all get the same answer.
        """


class MemoryReporter:
    """Keeps what was reported; for tests, benchmarks and single trials."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, Metrics]] = []

    def report(self, epoch: int, metrics: Metrics) -> None:
        """Keep the epoch."""
        self.epochs.append((epoch, metrics))

    def progress(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Nothing to keep."""

    def should_stop(self) -> bool:
        """Never."""
        return False
