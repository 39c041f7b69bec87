"""Where autocast must not lower the precision: scores that are ranked, and coordinates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """X in float32, or unchanged when it is float32 or float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the device of `x`; convert inputs by `at_least_float32`."""
    if x.device.type == "meta":
        # Tensors without numbers, for counting cost: nothing is cast there.
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
