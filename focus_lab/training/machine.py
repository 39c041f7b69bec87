"""How busy the machines of a trial are: one set of numbers a machine, not a worker."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from focus_lab.training.reporter import Metrics
from focus_lab.training.workers import Workers

_GIB = 2**30


class MachineLoad:
    """Measures from one call to the next.

    Args:
        workers: all workers of the trial.
        device: where this one trains.
    """

    def __init__(self, workers: Workers, device: torch.device) -> None:
        self._workers, self._device = workers, device
        self._node = int(os.environ.get("NODE_RANK", "0")) if workers.size > 1 else 0
        self._before = _processor_ticks()

    def measure(self) -> Metrics:
        """`system/node<n>/*` of all machines since the last call; every worker must call it."""
        busy, total = _processor_ticks()
        before_busy, before_total = self._before
        self._before = busy, total
        mine = {"memory_gib": _memory_used() / _GIB}
        if total > before_total:
            mine["cpu_percent"] = 100 * (busy - before_busy) / (total - before_total)
        if self._device.type == "cuda":
            free, whole = torch.cuda.mem_get_info(self._device)
            mine["gpu_memory_gib"] = (whole - free) / _GIB
        # Workers of one machine see the same machine; of its GPUs the fullest counts.
        by_node: dict[int, dict[str, float]] = {}
        for node, numbers in self._workers.gather((self._node, mine)):
            known = by_node.setdefault(node, {})
            known |= {name: max(value, known.get(name, value)) for name, value in numbers.items()}
        metrics: Metrics = self._workers.broadcast(
            {
                f"system/node{node}/{name}": value
                for node, numbers in sorted(by_node.items())
                for name, value in numbers.items()
            }
        )
        return metrics


def _processor_ticks() -> tuple[int, int]:
    """(busy, all) ticks of all cores since the machine started; zeros where none are told."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0, 0
    user, nice, system, idle, waiting, *rest = map(int, words)
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def _memory_used() -> float:
    """Bytes of the machine's memory that are not available any more."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 1024.0 * (kib["MemTotal"] - kib["MemAvailable"])
