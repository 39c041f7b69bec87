"""Exponential moving average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from focus_lab.specs.training import ExponentialAverage


class WeightAverage:
    """Keeps averaged copies of a model's floating-point state; other state is copied.

    Args:
        model: the model that trains.
        spec: decay and warm-up.
    """

    def __init__(self, model: nn.Module, spec: ExponentialAverage) -> None:
        self._spec = spec
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after optimizer step `step` (from 1)."""
        warmup = self._spec.warmup_steps
        decay = self._spec.decay * (1 - math.exp(-step / warmup) if warmup else 1)
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)
