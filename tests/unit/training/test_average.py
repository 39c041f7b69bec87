"""The average of the weights, against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from focus_lab.specs.training import ExponentialAverage
from focus_lab.training.average import WeightAverage


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def test_it_equals_the_weighted_sum_of_all_weights() -> None:
    model, decay, steps = Model(), 0.9, 30
    average = WeightAverage(model, ExponentialAverage(decay=decay, warmup_steps=0))
    expected = decay**steps * 4.0
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
        average.update(model, step)
        expected += (1 - decay) * decay ** (steps - step) * math.sin(step)
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-12)


def test_warm_up_follows_new_weights_faster() -> None:
    model = Model()
    average = WeightAverage(model, ExponentialAverage(decay=0.9, warmup_steps=10))
    with torch.no_grad():
        model.weight.fill_(8.0)
    average.update(model, 1)
    decay = 0.9 * (1 - math.exp(-0.1))
    assert average.state["weight"].item() == pytest.approx(decay * 4 + (1 - decay) * 8, rel=1e-12)


def test_whole_numbers_are_copied() -> None:
    model = Model()
    average = WeightAverage(model, ExponentialAverage(decay=0.9, warmup_steps=0))
    model.count += 7
    average.update(model, 1)
    assert average.state["count"].item() == 7


def test_the_average_does_not_share_memory_with_the_model() -> None:
    model = Model()
    average = WeightAverage(model, ExponentialAverage())
    with torch.no_grad():
        model.weight.fill_(0.0)
    assert average.state["weight"].item() == 4.0
