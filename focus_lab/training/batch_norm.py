"""Batch norm whose statistics are those of the whole batch, wherever its images are."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from focus_lab.errors import UserError


class _SumOverWorkers(torch.autograd.Function):
    """Sum of everybody's tensor; its gradient is the sum of everybody's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None


def _sum(x: Tensor, group: distributed.ProcessGroup) -> Tensor:
    total: Tensor = _SumOverWorkers.apply(x, group)
    return total


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all workers; on one device as on another.

    Torch's own needs a GPU, and trials must compute the same without one.
    """

    group: distributed.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same; in training every worker must call it."""
        if not self.training:
            return super().forward(x)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        here = wide.new_full((1,), wide.numel() // wide.shape[1])
        sums = _sum(torch.cat((wide.sum(dim=(0, 2, 3)), here)), self.group)
        count = sums[-1].detach()
        mean = sums[:-1] / count  # [C]
        # From the differences and not from squares: a mean far from zero would leave no digits.
        centred = wide - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3)), self.group) / count  # [C]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = self.momentum
            share = 1.0 / float(self.num_batches_tracked) if rate is None else rate
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            # The running variance is unbiased, the batch's own is not.
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return (centred * scale[:, None, None]).to(x.dtype)


def synchronise_batch_norm(model: nn.Module, group: distributed.ProcessGroup) -> None:
    """Let all trainable batch norms of a model compute over the workers of `group`, in place.

    Modules, parameters and their names stay; only what `forward` does changes.

    Raises:
        UserError: a norm of another kind would use the images of its own worker only.
    """
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
            cast(SynchronisedBatchNorm2d, module).group = group
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"compute.workers: {name} would normalise each worker's images by themselves, got "
                f"{type(module).__name__}; set model.backbone.freeze_norm to true or use one worker"
            )
