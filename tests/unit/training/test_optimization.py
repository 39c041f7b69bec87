import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from focus_lab.specs.training import CosineSchedule, Optimizer, StepSchedule
from focus_lab.training.optimization import (
    LearningRate,
    build_optimizer,
    learning_rate_factor,
    load_optimizer_state,
    parameter_groups,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.neck = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(2)
        self.alpha = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings_by_name(model, spec):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, spec)
        for parameter in group["params"]
    }


def test_norms_do_not_decay_and_the_backbone_learns_slowly():
    found = settings_by_name(Model(), Optimizer())
    assert found == {
        "alpha": (1e-4, 1e-4),
        "scale": (1e-4, 1e-4),
        "backbone.0.weight": (1e-5, 1e-4),
        "backbone.0.bias": (1e-5, 1e-4),
        "backbone.1.weight": (1e-5, 0.0),
        "backbone.1.bias": (1e-5, 0.0),
        "neck.0.weight": (1e-4, 1e-4),
        "neck.0.bias": (1e-4, 1e-4),
        "neck.1.weight": (1e-4, 0.0),
        "neck.1.bias": (1e-4, 0.0),
        "head.weight": (1e-4, 1e-4),
        "head.bias": (1e-4, 1e-4),
        "norm.weight": (1e-4, 0.0),
        "norm.bias": (1e-4, 0.0),
    }


def test_a_bias_weight_decay_holds_for_vectors_and_scalars_that_are_not_of_norms():
    found = settings_by_name(Model(), Optimizer(bias_weight_decay=0.5, norm_weight_decay=0.25))
    others = {name for name, (_, decay) in found.items() if decay == 0.5}
    assert others == {"alpha", "scale", "backbone.0.bias", "neck.0.bias", "head.bias"}
    assert found["norm.bias"][1] == found["backbone.1.weight"][1] == 0.25
    assert found["head.weight"][1] == 1e-4


def test_groups_have_every_trainable_parameter_once():
    model = Model()
    model.shared = model.head
    groups = parameter_groups(model, Optimizer())
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    trainable = {id(each) for each in model.parameters() if each.requires_grad}
    assert set(found) == trainable
    assert all(group["params"] for group in groups)


def test_a_wrapped_model_has_the_same_groups():
    wrapped = nn.ModuleDict({"module": Model()})
    found = settings_by_name(wrapped, Optimizer())
    assert found["module.backbone.0.weight"] == (1e-5, 1e-4)


def test_the_optimizer_uses_the_settings_of_the_spec():
    optimizer = build_optimizer(Model(), Optimizer(lr=0.5, betas=(0.8, 0.9), eps=1e-3))
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-3
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 0.05}


def test_a_step_is_adamw_as_written():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, Optimizer(lr=0.01, weight_decay=0.1))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    for name, value in model.named_parameters():
        moved = before[name] * (1 - 0.01 * 0.1) - 0.01 * value.grad / (value.grad.abs() + 1e-8)
        assert torch.allclose(value.detach(), moved, atol=1e-6)


STEP = StepSchedule(kind="step", milestones=(2.0, 3.5), gamma=0.1)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1.0), (19, 1.0), (20, 0.1), (34, 0.1), (35, 0.01), (1000, 0.01)],
)
def test_the_rate_drops_at_its_milestones(step, factor):
    assert learning_rate_factor(STEP, step, 50, 10) == pytest.approx(factor)


def test_a_milestone_between_two_steps_counts_from_the_next():
    schedule = StepSchedule(kind="step", milestones=(0.25,))
    factors = [learning_rate_factor(schedule, step, 10, 10) for step in range(4)]
    assert factors == pytest.approx([1.0, 1.0, 1.0, 0.1])


def test_a_milestone_that_binary_fractions_miss_is_not_late():
    schedule = StepSchedule(kind="step", milestones=(0.07,))
    assert 0.07 * 100 > 7
    assert learning_rate_factor(schedule, 6, 100, 100) == 1.0
    assert learning_rate_factor(schedule, 7, 100, 100) == pytest.approx(0.1)


def test_the_released_schedule_drops_at_step_82500():
    schedule = StepSchedule(kind="step")
    assert learning_rate_factor(schedule, 82_499, 90_000, 7_500) == 1.0
    assert learning_rate_factor(schedule, 82_500, 90_000, 7_500) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", [StepSchedule, CosineSchedule])
def test_warm_up_rises_in_a_line_and_then_leaves_the_schedule_alone(kind):
    warm = kind(kind=kind.model_fields["kind"].annotation.__args__[0], warmup_steps=10)
    cold = warm.model_copy(update={"warmup_steps": 0})

    def share(step):
        return learning_rate_factor(warm, step, 100, 100) / learning_rate_factor(
            cold, step, 100, 100
        )

    assert share(0) == pytest.approx(0.001)
    assert share(5) == pytest.approx(0.001 + 0.999 / 2)
    assert share(10) == share(50) == 1.0


def test_the_cosine_falls_from_one_to_its_final_share():
    schedule = CosineSchedule(kind="cosine", final_factor=0.05)
    factors = [learning_rate_factor(schedule, step, 101, 10) for step in range(101)]
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx((1 + 0.05) / 2)
    assert factors[100] == pytest.approx(0.05)
    assert all(later < earlier for earlier, later in pairwise(factors))


def test_a_training_of_one_step_has_the_full_rate():
    assert learning_rate_factor(CosineSchedule(kind="cosine"), 0, 1, 1) == 1.0


@given(
    st.integers(0, 300), st.integers(1, 200), st.integers(1, 50), st.integers(0, 60), st.booleans()
)
def test_factors_are_shares(step, total, per_epoch, warmup, cosine):
    schedule = (
        CosineSchedule(kind="cosine", warmup_steps=warmup)
        if cosine
        else StepSchedule(kind="step", warmup_steps=warmup)
    )
    factor = learning_rate_factor(schedule, step, total, per_epoch)
    assert 0.0 < factor <= 1.0
    assert math.isfinite(factor)


def test_the_learning_rate_follows_the_step_number_whatever_came_before():
    optimizer = build_optimizer(Model(), Optimizer())
    rate = LearningRate(optimizer, STEP, total_steps=50, steps_per_epoch=10)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4, 1e-5}
    assert rate.set_step(20) == pytest.approx(0.1)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1e-6, 1e-5])
    rate.set_step(0)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4, 1e-5}


def test_a_resumed_optimizer_keeps_its_base_rates():
    optimizer = build_optimizer(Model(), Optimizer())
    LearningRate(optimizer, STEP, 50, 10).set_step(40)
    resumed = build_optimizer(Model(), Optimizer())
    resumed.load_state_dict(optimizer.state_dict())
    rate = LearningRate(resumed, STEP, 50, 10)
    assert {group["lr"] for group in resumed.param_groups} == {1e-4, 1e-5}
    rate.set_step(40)
    rates = [[group["lr"] for group in each.param_groups] for each in (optimizer, resumed)]
    assert rates[0] == rates[1]


def test_moments_saved_in_another_memory_layout_stay_with_their_entries():
    def trained(layout, steps, state=None):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=layout)
        optimizer = build_optimizer(model, Optimizer(lr=0.1))
        if state is not None:
            model.load_state_dict(state[0])
            load_optimizer_state(optimizer, state[1])
        for step in steps:
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(10 * step + number)
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    saved = trained(torch.contiguous_format, range(2))
    resumed, _ = trained(torch.channels_last, range(2, 4), saved)
    expected, _ = trained(torch.contiguous_format, range(4))
    torch.testing.assert_close(resumed, expected, rtol=1e-6, atol=1e-7)
