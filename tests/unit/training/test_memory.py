"""What a worker held, in words."""

from __future__ import annotations

import re

import pytest
import torch

from focus_lab.training.memory import memory_held, memory_profile


def test_on_a_cpu_the_process_is_set_beside_the_machine() -> None:
    found = re.fullmatch(
        r"the worker held ([\d,]+) MiB at most, the machine has ([\d,]+) MiB", memory_held()
    )
    assert found
    held, there = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < held < there


def test_on_a_gpu_the_allocator_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 6 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 7 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda: "| largest blocks |")
    assert memory_held() == (
        "the worker held 6,144 MiB at most and had 7,168 MiB reserved; of the GPU's 8,192 MiB "
        "1,024 MiB are free now"
    )
    assert "main memory:" in memory_profile()
    assert "| largest blocks |" in memory_profile()


def test_a_gpu_that_has_failed_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", failed)
    monkeypatch.setattr(torch.cuda, "memory_summary", failed)
    assert "the machine has" in memory_profile()
