"""How busy machines are, as a trial reports it."""

from __future__ import annotations

import os

import torch

from focus_lab.specs.metrics import is_metric
from focus_lab.training.machine import MachineLoad
from focus_lab.training.workers import ALONE, Workers

CPU = torch.device("cpu")


def test_a_machine_is_reported_once_with_plausible_numbers() -> None:
    load = MachineLoad(ALONE, CPU)
    sum(number * number for number in range(3_000_000))
    metrics = load.measure()
    assert all(name.startswith("system/node0/") and is_metric(name) for name in metrics)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert 0 < metrics["system/node0/memory_gib"] < total
    assert 0 <= metrics.get("system/node0/cpu_percent", 50.0) <= 100


def test_workers_of_one_machine_are_one_machine() -> None:
    class Two(Workers):
        def gather(self, content: object) -> list[object]:
            return [(0, {"memory_gib": 1.0}), (1, {"memory_gib": 2.0}), (1, {"memory_gib": 2.5})]

    metrics = MachineLoad(Two(), CPU).measure()
    assert metrics == {"system/node0/memory_gib": 1.0, "system/node1/memory_gib": 2.5}
