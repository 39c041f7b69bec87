"""Timing of several implementations side by side, on a CPU or a GPU."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

Step: TypeAlias = Callable[[], object]
"""What is timed."""


def interleaved(steps: Sequence[Step], device: torch.device, rounds: int) -> list[list[float]]:
    """Milliseconds a call: for each step, one number a round; in a round each step has its turn.

    On a GPU it is the device's time, unless a step waits for the device itself.
    """
    clock = _GpuClock(device) if device.type == "cuda" else _CpuClock()
    repeats = [clock.warm_up(step) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, repeat, found in zip(steps, repeats, times, strict=True):
            found.append(clock.time(step, repeat))
    return times


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes read and written by a plain copy, in GB/s."""
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    (times,) = interleaved([lambda: target.copy_(source)], device, 7)
    return 2 * source.numel() * 4 / statistics.median(times) / 1e6


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


class _CpuClock:
    """Wall time of blocks of a few milliseconds."""

    block_ms = 5.0

    def warm_up(self, step: Step) -> int:
        """How many calls make a block."""
        self.time(step, 1)
        return max(1, min(200, math.ceil(self.block_ms / max(self.time(step, 1), 1e-3))))

    def time(self, step: Step, repeat: int) -> float:
        """Milliseconds a call."""
        start = time.perf_counter()
        for _ in range(repeat):
            step()
        return 1000 * (time.perf_counter() - start) / repeat


class _GpuClock:
    """The device's time between two events, in blocks of calls that were queued beforehand."""

    block_ms = 2.0
    # The queue holds about a thousand kernels, and plain PyTorch takes some sixty a call.
    most = 16
    cycles_per_second = 2e9
    """Of the device, at most."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host_seconds: dict[Step, float] = {}

    def warm_up(self, step: Step) -> int:
        """How many calls make a block."""
        for _ in range(3):
            step()
        torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        step()
        self.host_seconds[step] = time.perf_counter() - start
        once = self.time(step, 3)
        return max(1, min(self.most, math.ceil(self.block_ms / max(once, 1e-3))))

    def time(self, step: Step, repeat: int) -> float:
        """Milliseconds a call."""
        begin, end = self._event(), self._event()
        torch.cuda.synchronize(self.device)
        # The device waits while Python queues the calls; else small ones would be timed at the
        # speed of Python.
        wait = min(0.1, 1.5 * self.host_seconds[step] * repeat)
        torch.cuda._sleep(int(wait * self.cycles_per_second))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeat):
            step()
        end.record()
        end.synchronize()
        elapsed: float = begin.elapsed_time(end)
        return elapsed / repeat

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
