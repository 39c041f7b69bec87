"""What a worker holds in memory: told when memory is exhausted."""

from __future__ import annotations

import contextlib
import os

import torch

from focus_lab.training.cost import peak_memory_mib

_MIB = 2**20
_CPU, _GPU = torch.device("cpu"), torch.device("cuda")


def memory_held() -> str:
    """What this process held at most since training began, and of how much, as a clause."""
    # A GPU that has failed answers no more questions.
    with contextlib.suppress(RuntimeError):
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            free, total = (size / _MIB for size in torch.cuda.mem_get_info())
            return (
                f"the worker held {peak_memory_mib(_GPU):,.0f} MiB at most and had "
                f"{torch.cuda.max_memory_reserved() / _MIB:,.0f} MiB reserved; of the GPU's "
                f"{total:,.0f} MiB {free:,.0f} MiB are free now"
            )
    return (
        f"the worker held {peak_memory_mib(_CPU):,.0f} MiB at most, the machine has "
        f"{_machine_mib():,.0f} MiB"
    )


def memory_profile() -> str:
    """All that is known, in lines: on a GPU the allocator's own table, with its largest blocks."""
    lines = [memory_held(), f"main memory: {peak_memory_mib(_CPU):,.0f} MiB at most"]
    with contextlib.suppress(RuntimeError):
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            lines.append(torch.cuda.memory_summary())
    return "\n".join(lines) + "\n"


def _machine_mib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _MIB
