"""AdamW with the recipe's parameter groups, and the learning rate over time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from focus_lab.specs import training as specs


def parameter_groups(model: nn.Module, spec: specs.Optimizer) -> list[dict[str, Any]]:
    """Sort the trainable parameters by learning rate and weight decay.

    As released, scales and biases of norm layers have their own weight decay, other biases decay
    like matrices (unless `bias_weight_decay` says otherwise), and what lies under a module called
    `backbone` learns more slowly.

    Args:
        model: frozen parameters (requires_grad False) are left out; shared ones occur once.
        spec: the optimizer's settings.

    Returns:
        Groups in the form that torch's optimizers take, none of them empty, parameters in order of
        the model. Beside `lr` each holds `base_lr`, the rate before any schedule.
    """
    # By name, because the norm layers of torch and timm have no common base.
    norms = {
        id(parameter)
        for module in model.modules()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    bias_weight_decay = (
        spec.weight_decay if spec.bias_weight_decay is None else spec.bias_weight_decay
    )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = spec.lr * (spec.backbone_lr_factor if "backbone" in name.split(".") else 1.0)
        if id(parameter) in norms:
            weight_decay = spec.norm_weight_decay
        elif parameter.ndim <= 1:
            weight_decay = bias_weight_decay
        else:
            weight_decay = spec.weight_decay
        groups.setdefault((lr, weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}
        for (lr, weight_decay), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, spec: specs.Optimizer) -> AdamW:
    """AdamW over the model's parameter groups.

    Fused: on one CPU core it is several times faster than torch's other forms; it is as
    deterministic, and a few entries in ten thousand differ from them by one unit in the last place.
    """
    return AdamW(parameter_groups(model, spec), betas=spec.betas, eps=spec.eps, fused=True)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put an optimizer back into a state, whatever the memory layout that it was saved in.

    A fused step walks through parameter, gradient and moments side by side: moments in another
    layout than their parameter's would belong to other entries, and nobody would notice.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, moment in moments.items():
            if moment.shape == parameter.shape and moment.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def learning_rate_factor(
    schedule: specs.StepSchedule | specs.CosineSchedule,
    step: int,
    total_steps: int,
    steps_per_epoch: int,
) -> float:
    """Share of the base learning rate that optimizer step `step` uses.

    Args:
        schedule: the recipe's schedule; its warm-up multiplies it.
        step: number of the step, from 0.
        total_steps: steps of the whole training; the cosine ends at step total_steps - 1.
        steps_per_epoch: optimizer steps of one epoch; milestones are rounded up to whole steps.
    """
    if isinstance(schedule, specs.StepSchedule):
        # The small term keeps 0.07 epochs of 100 steps at step 7: as floats 0.07 * 100 > 7.
        boundaries = (
            math.ceil(milestone * steps_per_epoch - 1e-6) for milestone in schedule.milestones
        )
        factor = schedule.gamma ** sum(step >= boundary for boundary in boundaries)
    else:
        progress = min(step / max(total_steps - 1, 1), 1.0)
        final = schedule.final_factor
        factor = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if step < schedule.warmup_steps:
        done = step / schedule.warmup_steps
        factor *= schedule.warmup_factor + (1.0 - schedule.warmup_factor) * done
    return factor


class LearningRate:
    """Sets the learning rates of an optimizer; all of its state is the number of the step."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: specs.StepSchedule | specs.CosineSchedule,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        """Start at step 0.

        Args:
            optimizer: made by `build_optimizer`.
            schedule: the recipe's schedule.
            total_steps: optimizer steps of the whole training.
            steps_per_epoch: optimizer steps of one epoch.
        """
        self.optimizer = optimizer
        self.schedule = schedule
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.set_step(0)

    def set_step(self, step: int) -> float:
        """Give every parameter group its rate for optimizer step `step`, counted from 0.

        Returns:
            The factor that the base rates were multiplied by.
        """
        factor = learning_rate_factor(self.schedule, step, self.total_steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return factor
